"""All faults. ``python -m tests.faults.corpus`` tries each and prints what is wrong, and how many are right."""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults import checkpoints, encoder_files, rasters, results, settings, silent, yaml_files
from tests.faults.fault import Fault, complaints
from tests.faults.inputs import Valid

KINDS: dict[str, list[Fault]] = {
    "configuration files": yaml_files.FILES,
    "values": yaml_files.VALUES,
    "data set": settings.DATASET,
    "encoder": settings.ENCODER,
    "method": settings.METHOD,
    "command line": settings.WORDS,
    "image": rasters.IMAGES,
    "mask": rasters.MASKS,
    "folder": rasters.FOLDERS,
    "split file": rasters.SPLIT_FILES,
    "encoder's files": encoder_files.ENCODERS,
    "adapter": results.ADAPTERS,
    "result": results.RESULTS,
    "checkpoint": checkpoints.STATES,
    "scene": checkpoints.SCENES,
    "figures": checkpoints.FIGURES,
    "pretraining": checkpoints.PRETRAINING,
    "conversion": checkpoints.CONVERSION,
    "hub": checkpoints.HUB,
    "benchmark": checkpoints.BENCHMARK,
    "silent, data set": silent.SILENT_DATA,
    "silent, checkpoint": silent.SILENT_STATES,
    "silent, scene": silent.SILENT_MAPS,
    "silent, result": silent.SILENT_RESULTS,
}
FAULTS = {f"{kind}: {fault.name}": fault for kind, faults in KINDS.items() for fault in faults}


def main() -> None:
    """Try them, or those whose name holds a given word."""
    chosen = {name: fault for name, fault in FAULTS.items() if all(word in name for word in sys.argv[1:])}
    right: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            valid = Valid.make(Path(folder) / "valid")
        for number, (name, fault) in enumerate(chosen.items()):
            started = time.perf_counter()
            found = complaints(fault, valid, Path(folder) / str(number))
            seconds = time.perf_counter() - started
            right[name.partition(":")[0]] += not found
            for one in found:
                print(f"{name} ({seconds:.2f} s)\n    {one}", flush=True)
    for kind, faults in KINDS.items():
        count = sum(name.startswith(f"{kind}:") for name in chosen)
        if count:
            print(f"{kind:<24}{right[kind]:>4}/{count:<4}{len({fault.program for fault in faults})} program(s)")
    print(f"{sum(right.values())}/{len(chosen)}")


if __name__ == "__main__":
    main()
