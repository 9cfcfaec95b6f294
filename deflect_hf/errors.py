"""Every error a user can cause: what is wrong, the valid choices, and the fix.

All of them derive from :class:`DeflectError`, itself a ``ValueError``, so that code written against PEFT or
transformers, which catches ``ValueError``, keeps working. The command line prints them without a traceback.
"""

from __future__ import annotations

import difflib
import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

USER_ERROR = 2  # exit status
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LONGEST_REASON = 200  # characters
LONGEST_MESSAGE = 2000
KILLED_READER = (
    "a process that reads images was killed from outside, most often because the memory was full. Fix: lower "
    "--num_workers or --batch_size; a training goes on with --resume_from last."
)
# extras of setup.cfg, and the modules that each brings beyond what the tuners need
EXTRAS = {
    "train": ("affine", "datasets", "matplotlib", "PIL", "pooch", "pyproj", "rasterio", "scipy", "torchmetrics"),
    "geobench": ("h5py",),
    "quantization": ("bitsandbytes", "torchao"),
    "vector": ("pyogrio", "shapely"),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
}
# what may be missing where exported models make maps, and nothing else is done
LEFT_OUT = ("accelerate", "huggingface_hub", "peft", "safetensors", "spyndex", "transformers")


class DeflectError(ValueError):
    """Base class of the errors that a user can fix: one line of bounded length, whatever is quoted in it."""

    def __init__(self, message: object = "") -> None:
        # one that a data loader's worker raised comes again behind the traceback of that process
        own = f"\n{type(self).__module__}.{type(self).__qualname__}: "
        super().__init__(bounded(str(message).rpartition(own)[2]))


class BandError(DeflectError):
    """A band is unknown, missing, given twice, or the number of channels does not fit the band list."""


class UnitError(DeflectError):
    """Values are not reflectance: digital numbers, 8-bit values or standardised values were given."""


class IndexFormulaError(DeflectError):
    """A spectral index is unknown, or its formula holds something other than arithmetic on bands."""


class ConfigError(DeflectError):
    """A configuration key or value is unknown or does not fit."""


class DataError(DeflectError):
    """A data folder, file, mask or split is missing, empty, broken or inconsistent."""


class CheckpointError(DeflectError):
    """A checkpoint or adapter folder is missing, incomplete or belongs to something else."""


class HubError(DeflectError):
    """The Hub cannot be reached, refuses, lacks what was asked for, or a file did not arrive as it was announced."""


class ArchitectureError(DeflectError):
    """The model is not a vision transformer that DEFLECT knows how to adapt."""


class UnsupportedOperationError(DeflectError, NotImplementedError):
    """DEFLECT cannot do this; the message says why and what to do instead."""


class MissingPackageError(DeflectError, ImportError):
    """What was asked for needs an extra of the package that is not installed."""


@contextmanager
def named_extras() -> Iterator[None]:
    """Say which extra brings a module that an import in the block does not find."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = str(error.name).partition(".")[0]
        extra = next((f"[{extra}]" for extra, modules in EXTRAS.items() if module in modules), "")
        if not extra and module not in LEFT_OUT:
            raise
        raise MissingPackageError(
            f"this needs {module}, which is not installed: pip install 'deflect_hf{extra}' brings it."
        ) from error


@contextmanager
def data_errors(problem: str, fix: str, *kinds: type[BaseException]) -> Iterator[None]:
    """Say ``problem (reason): fix`` (DataError) where a library complains in the block by an error of these kinds."""
    try:
        yield
    except kinds as error:
        raise DataError(f"{problem} ({brief(error.__cause__ or error)}): {fix}") from error


@contextmanager
def user_errors(argv: Sequence[str]) -> Iterator[None]:
    """Print what a user can fix on stderr and exit with status 2; ``--debug`` shows the traceback instead."""
    try:
        with named_extras():
            yield
    except (DeflectError, OSError, RuntimeError) as error:
        text = str(error) if isinstance(error, DeflectError) else ""
        # what the file system refuses: rights, names that are too long, links in a circle, a read-only disk
        if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
            text = f"{bounded(str(error.filename))}: {error.strerror}. Correct the path, or its rights."
        elif isinstance(error, OSError) and error.errno in NO_ROOM:
            text = f"{error.strerror}: what was being written is not whole. Make room, or choose another place for it."
        elif isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid"):
            text = KILLED_READER
        if "--debug" in argv or not text:
            raise
        print(f"error: {text}", file=sys.stderr)
        raise SystemExit(USER_ERROR) from None


def run_job(jobs: Mapping[str, Callable[[list[str]], object]], description: str, argv: Sequence[str] | None) -> None:
    """Hand the rest of a command line to the job that is named first; without a name, or for ``--help``, tell of all.

    Raises:
        ConfigError: there is no such job.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    words = [*words[1:], "--debug"] if words[:1] == ["--debug"] else words
    if not words or words[0] in ("-h", "--help"):
        print(description)
        return
    with user_errors(words):
        name, *rest = words
        if name not in jobs:
            raise ConfigError(f"there is no {name!r} here: choose one of {listing(jobs)}.{nearest(name, jobs)}")
        show_log()
        jobs[name](rest)


def show_log() -> None:
    """Show the project's own log lines, of the first process only, and no progress bars but ours."""
    if sys.modules.get("transformers") is not None:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
    # chips cut for training need no georeference
    warnings.filterwarnings("ignore", message="Dataset has no geotransform")
    # raised inside PEFT by a rename in transformers: nothing a user can do about it
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("deflect_hf")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)


def nearest(name: object, choices: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest of ``choices``, or an empty string when none is near."""
    options = list(choices)
    folded = {option.casefold(): option for option in reversed(options)}
    matches = difflib.get_close_matches(str(name).casefold(), list(folded), n=1, cutoff=0.6)
    return f" Did you mean {folded[matches[0]]!r}?" if matches else ""


def bounded(text: str) -> str:
    """One line of at most LONGEST_MESSAGE characters: the middle goes, as the fix stands at the end."""
    line = " ".join(text.split())
    half = LONGEST_MESSAGE // 2
    return line if len(line) <= LONGEST_MESSAGE else f"{line[:half]} ... {line[-half:]}"


def brief(error: BaseException) -> str:
    """What a library said, in one line of bounded length, for the end of a sentence of ours."""
    text = f"no entry {error}" if isinstance(error, KeyError) else " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON].rstrip()} ..."


def counted(number: int, what: str) -> str:
    """``"1 image"``, ``"2 images"``."""
    return f"{number} {what}" + "s" * (number != 1)


def listing(choices: Iterable[str], most: int | None = None) -> str:
    """Join choices for an error message: ``'a', 'b', 'c'``, with ``most`` 2 of them ``'a', 'b' and 1 more``."""
    names = [repr(choice) for choice in choices]
    more = f" and {len(names) - most} more" if most is not None and len(names) > most else ""
    return ", ".join(names[:most]) + more or "(none)"
