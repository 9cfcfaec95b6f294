"""What training costs beside what else a user would write: processor time of an epoch, peak memory, lines of code.

The same encoder, images, batches and crops by the training command with DEFLECT and with LoRA, by the Trainer of
transformers, by a loop of plain PyTorch, and by TerraTorch's fit where that is installed (it needs torchvision: an
environment of its own), these with PEFT's LoRA, each in a process of its own with one thread, in turns. An epoch is
what lies between optimizer steps, from the third epoch on; what follows the last step (evaluation) is not run. A round
gives the median epoch of each row, and its ratio to that of the last row.
"""

import json
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from deflect_hf.benchmark.flags import flag_parser, markdown, report
from tests.benchmarks import refuse_less
from tests.benchmarks.scenes import peak_bytes, run_alone

WARM_UP = 2  # epochs
BATCH = 8
TRAIN = (
    "train --config configs/run/default.yaml --segmentor_config configs/segmentors/linear.yaml "
    "--augmentation_config configs/augmentations/segmentation_default.yaml "
    "--dataset_config configs/datasets/burn42.yaml --encoder.mean 0.0579 0.0629 0.0400 "
    f"--encoder.std 0.0599 0.0487 0.0406 --batch_size {BATCH} --num_workers 0 "
    "--dataset.root {data} --encoder.name_or_path {encoder} --work_dir {folder}/run "
    "--epochs {epochs} --eval_interval {epochs} --ckpt_interval {epochs}"
)
LORA = " --finetune lora --method.rank 16 --method.target all-linear --method.patch_embed rgb+random"
TERRATORCH = "TerraTorch's fit, LoRA"
OWN = "tests.benchmarks.peers.{} {{data}} {{encoder}} {{epochs}} {{folder}}/run"
# a program with its arguments, and the files that a user writes for it
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "deflect-train, DEFLECT": (TRAIN, ()),
    "deflect-train, LoRA": (TRAIN + LORA, ()),
    "Trainer of transformers, LoRA": (OWN.format("trainer"), ("parts.py", "trainer.py")),
    **({TERRATORCH: (OWN.format("terratorch_fit"), ("terratorch_fit.py",))} if find_spec("terratorch") else {}),
    "bare PyTorch loop, LoRA": (OWN.format("loop"), ("parts.py", "loop.py")),
}
COLUMNS = "row | epoch, s | over the bare loop | peak memory, MiB | lines of Python"
CHILD = "from tests.benchmarks.peers import child; child()"


def main(argv: Sequence[str]) -> None:
    """Measure and print a Markdown table; the numbers go to `peers.json`."""
    parser = flag_parser("peers", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of burn42")
    parser.add_argument("--encoder", type=Path, required=True, help="folder of a ViT of transformers for 64 px")
    parser.add_argument("--epochs", type=int, default=8, help="of each run")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each row")
    own = parser.parse_args(argv)
    refuse_less(own, {"epochs": WARM_UP + 1, "rounds": 1})
    steps = len((own.data / "train.txt").read_text(encoding="ascii").split()) // BATCH
    found: dict[str, list[dict[str, Any]]] = {row: [] for row in ROWS}
    for _ in range(own.rounds):
        for row, (program, _) in ROWS.items():
            with tempfile.TemporaryDirectory() as folder:
                words = [word.format(**{**vars(own), "folder": folder}) for word in program.split()]
                found[row].append(measure([str(own.epochs), str(steps), *words]))
    epochs = {row: [median(run["epoch_seconds"]) for run in runs] for row, runs in found.items()}
    *_, bare = epochs.values()
    table = []
    for row, (_, files) in ROWS.items():
        ratio = median(one / other for one, other in zip(epochs[row], bare, strict=True))
        memory = median(run["peak_bytes"] for run in found[row]) / 2**20
        table.append((row, f"{median(epochs[row]):.2f}", f"{ratio:.2f}", f"{memory:.0f}", str(lines(files))))
    note = f"Processor time, one thread, medians of {own.rounds} round(s) of {own.epochs - WARM_UP} epochs."
    report(own.output, "peers", found, markdown(COLUMNS, table, note))


def measure(words: list[str]) -> dict[str, Any]:
    """Seconds of each epoch and peak memory of a program in a process of its own (DeflectError if it fails)."""
    measured: dict[str, Any] = json.loads(run_alone(CHILD, words, f"{words[2]} failed").splitlines()[-1])
    return measured


def child() -> None:
    """Run the program that the command line names up to its last step; print what :func:`measure` wants to know."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    epochs, steps, ends = int(sys.argv[1]), int(sys.argv[2]), []

    def stepped(*_: Any) -> None:
        ends.append(time.process_time())
        if len(ends) == steps * epochs:
            seconds = [end - start for start, end in pairwise(ends[steps * WARM_UP - 1 :: steps])]
            print("\n" + json.dumps({"epoch_seconds": seconds, "peak_bytes": peak_bytes()}), flush=True)
            os._exit(0)

    register_optimizer_step_post_hook(stepped)
    sys.argv = sys.argv[3:]
    runpy.run_module(sys.argv[0], run_name="__main__")


def lines(files: Sequence[str]) -> int:
    """Lines of Python, without empty ones and docstrings."""
    texts = [(Path(__file__).parent / name).read_text(encoding="utf-8") for name in files]
    return sum(bool(line.strip()) and not line.startswith('"""') for text in texts for line in text.splitlines())
