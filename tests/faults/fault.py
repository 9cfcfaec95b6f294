"""One fault: how an input is damaged, and what the program that meets it has to say."""

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deflect_hf.errors import USER_ERROR, DeflectError
from tests.faults.inputs import Place, Valid, Words, main_of, quiet

LONGEST = 600  # characters of a message, paths to the inputs aside

Damage = Callable[[Place], Words]


@dataclass(frozen=True)
class Fault:
    """A damaged input.

    Attributes:
        name: of the case.
        damage: breaks copies of valid inputs; returns the words of the command line that meet them.
        says: what the message must hold: the file or flag, and what is wrong with it.
        program: which of the programs.
    """

    name: str
    damage: Damage
    says: tuple[str, ...]
    program: str = "train.py"


def table(program: str, *rows: tuple[str, Damage, Sequence[str]]) -> list[Fault]:
    """Faults of one program."""
    return [Fault(name, damage, tuple(says), program) for name, damage, says in rows]


def changed(path: Callable[[Place], Path], change: Callable[[Path], object], words: Damage) -> Damage:
    """These words, after ``change`` has damaged one file."""

    def damage(place: Place) -> Words:
        change(path(place))
        return words(place)

    return damage


def given(name: str, content: bytes | str, words: Damage) -> Damage:
    """These words, with a file of this name and content in the place."""

    def write(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return changed(lambda place: place.folder / name, write, words)


def complaints(fault: Fault, valid: Valid, folder: Path) -> list[str]:
    """What is wrong with how a fault is told; nothing if it is one clear sentence and exit status 2."""
    folder.mkdir(parents=True)
    words = fault.damage(Place(folder, valid))
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            main_of(fault.program)(words)
    except SystemExit as stopped:
        error = stopped.__context__
        code = stopped.code
    except Exception as raised:
        return [f"raised {type(raised).__name__}: {raised}"]
    else:
        return ["was accepted"]
    finally:
        quiet()
    if not isinstance(error, DeflectError):
        return [f"exits with {code!r} after {error!r}"]
    told = re.search(r"(?ms)^error: (.*)\n\Z", printed.getvalue())
    if code != USER_ERROR or told is None:
        return [f"exits with {code!r} and says {printed.getvalue()[-300:]!r}"]
    message, found = told[1], []
    short = message.replace(str(folder), "FOLDER").replace(str(valid.folder), "VALID")
    if "Traceback" in printed.getvalue():
        found.append("shows a traceback")
    if len(short) > LONGEST:
        found.append(f"takes {len(short)} characters")
    if "\n" in message:
        found.append("takes several lines")
    lacking = [text for text in fault.says if text not in short]
    if lacking:
        found.append(f"does not name {lacking}")
    return [f"{one}: {short}" for one in found]
