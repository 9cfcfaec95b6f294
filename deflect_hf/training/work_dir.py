"""The folder of a run: one run at a time, nothing lost that no run wrote, old results kept until there are new ones."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from deflect_hf.artifacts.saved_model import DESCRIPTION, RESULTS
from deflect_hf.config.run import RunArguments
from deflect_hf.data.kept import IMAGES
from deflect_hf.errors import NO_ROOM, CheckpointError, ConfigError, listing
from deflect_hf.files import CONFIG, LOG, write_json
from deflect_hf.training import checkpoint, prefix, trackers
from deflect_hf.training.build import ENCODER

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

CURVES = "curves.png"
RATES = "learning_rate.png"  # the test of `--lr auto`
PLACES = "splits.gpkg"  # where the splits of scenes lie
ENVIRONMENT = "environment.json"
MANIFEST = ".run.json"  # names of what the runs in this folder have written, and what is kept of a former run
FORMER = ".former"  # ending of what is kept
LOCK = ".lock"
TAKEN = (errno.EACCES, errno.EAGAIN)


def default_work_dir(config: RunArguments) -> Path:
    """``work-dir/DATASET-ENCODER-FINETUNE-SEED``."""
    data = Path(config.dataset.root).name if config.dataset.root else config.dataset.name
    random = (config.encoder.random or {}).get("model_type")
    encoder = f"random_{random}" if random else Path(str(config.encoder.name_or_path)).name
    return Path("work-dir") / f"{data}-{encoder}-{config.finetune.replace(':', '-')}-{config.seed}"


def names_of(config: RunArguments) -> list[str]:
    """What a run writes into its folder."""
    names = [checkpoint.BEST, checkpoint.FOLDER, LOG, CURVES, RATES, ENVIRONMENT, CONFIG, RESULTS, *DESCRIPTION]
    names += [ENCODER] if config.encoder.random is not None else []
    names += [PLACES] if config.dataset.name == "scenes" else []
    names += [prefix.FOLDER] if config.cache_prefix else []
    names += [IMAGES] if config.cache_images else []
    return names + [folder for name, folder in trackers.FOLDERS.items() if name in config.tracker]


def read_manifest(work_dir: Path) -> dict[str, list[str]]:
    """``files`` that the runs in this folder have written, and those kept of a ``former`` run."""
    try:
        found = json.loads((work_dir / MANIFEST).read_text(encoding="utf-8"))
        return {kind: [str(name) for name in found[kind]] for kind in ("files", "former")}
    except (OSError, ValueError, KeyError, TypeError):
        return {"files": [], "former": []}


def refuse_loss(config: RunArguments, work_dir: Path, continued: bool) -> None:
    """Refuse to train where that would replace what is not to be replaced.

    Args:
        continued: the run in the folder goes on.
    """
    own = [name for name in read_manifest(work_dir)["files"] if _is_there(work_dir / name)]
    if CONFIG in own and not (continued or config.overwrite or config.resume_from == checkpoint.LAST):
        raise ConfigError(
            f"{work_dir} holds a run already: give another --work_dir, continue it with --resume_from last, or "
            "replace it with --overwrite"
        )
    foreign = [name for name in names_of(config) if name not in own and _is_there(work_dir / name)]
    if foreign:
        raise ConfigError(
            f"{work_dir} holds {listing(foreign)}, which no run wrote that this version knows of: move them away, or "
            "give another --work_dir"
        )
    if continued:
        return
    for key, given in (("encoder.name_or_path", config.encoder.name_or_path), ("dataset.root", config.dataset.root)):
        if given is None or not Path(given).exists():
            continue
        read = Path(given).resolve()
        if any((work_dir / name).resolve() in (read, *read.parents) for name in own):
            raise ConfigError(
                f"{key} is {given}, a part of the run that --overwrite would replace: copy it to another place, or "
                "give another --work_dir"
            )


def _is_there(path: Path) -> bool:
    """Whether something would be lost here; an empty folder, to which a link leads say, is a place to write."""
    return any(path.iterdir()) if path.is_dir() else path.exists()


def claim(config: RunArguments, work_dir: Path, continued: bool) -> None:
    """Have the folder be this run's: what a former run wrote moves aside, and what this one writes is noted."""
    manifest = read_manifest(work_dir)
    if not continued:
        moved = [name for name in manifest["files"] if _is_there(work_dir / name)]
        for name in moved:
            path = (work_dir / name).resolve()
            if path.with_name(path.name + FORMER).exists():
                _remove(path)  # of a run that came to no result: what is kept is better
            else:
                path.replace(path.with_name(path.name + FORMER))
        if moved:
            logger.info("the former run in %s is kept as *%s until this one has its results", work_dir, FORMER)
        manifest = {"files": [], "former": sorted({*manifest["former"], *moved})}
    write_json(work_dir / MANIFEST, {**manifest, "files": sorted({*manifest["files"], *names_of(config)})})


def drop_former(work_dir: Path) -> None:
    """Remove what was kept of a former run: this one has its results."""
    manifest = read_manifest(work_dir)
    for name in manifest["former"]:
        path = (work_dir / name).resolve()
        _remove(path.with_name(path.name + FORMER))
    write_json(work_dir / MANIFEST, {**manifest, "former": []})


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def run_lock(work_dir: Path, accelerator: Accelerator, dry: bool = False) -> Iterator[None]:
    """Hold the folder inside the block, and make it unless ``dry``; it ends with the first process, however that ends.

    A second run, started while the first still trains, would mix its checkpoints with it.
    """
    if any(path.exists() and not path.is_dir() for path in (work_dir, *work_dir.parents)):
        raise ConfigError(f"{work_dir} cannot be a folder, a file is in the way: give another --work_dir")
    handle, taken = None, [False]
    if accelerator.is_main_process and (not dry or (work_dir / LOCK).exists()):
        work_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(work_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        taken = [not _held(handle, work_dir)]
    try:
        if broadcast_object_list(taken)[0]:
            raise ConfigError(
                f"{work_dir} is in use: another run trains there at this moment. Fix: wait for it or stop it, or give "
                "another --work_dir"
            )
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _held(handle: int, work_dir: Path) -> bool:
    """Whether the lock is this process's now; also where there are no locks, as all worked without them before."""
    if fcntl is None:
        return True
    try:
        # A record lock: unlike that of flock, it does not pass to the processes of data loaders, which may outlive a
        # killed run by seconds.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            return False
        logger.info("%s lies on a disk without locks (%s): start no second run there", work_dir, error.strerror)
    return True


@contextmanager
def full_disk_explained(work_dir: Path) -> Iterator[None]:
    """Say what to do about a full disk, which only a checkpoint can do without."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        named = re.search(r"os error (\d+)", str(error))  # as safetensors says it
        number = int(named[1]) if named else getattr(error, "errno", None)
        if number not in NO_ROOM:
            raise
        raise CheckpointError(
            f"{work_dir}: no space is left on the disk. Fix: free some, then go on with --resume_from last."
        ) from error
