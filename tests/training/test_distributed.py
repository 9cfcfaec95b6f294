"""Two processes on CPU (gloo) train as one does, with DDP and with FSDP2; stopped and resumed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deflect_hf.training.checkpoint import list_checkpoints
from tests.benchmarks.resume import TRAINING, finish, start, stop
from tests.training.test_run import lines, torch_file
from tests.training.two_processes import STOP_AFTER, sharded, told_to_stop

# 13 test images, of which the two processes have 7 and 6 in batches of 2; three batches of 8 make two steps
SETTINGS = ("--segmentor.dropout", "0", "--accumulate", "2", "--segmentor.optimizer.max_grad_norm", "0.5")
SETTINGS += ("--dataset.num_samples", "53", "--dataset.test_fraction", "0.25", "--ckpt_keep", "3", "--num_workers", "0")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one`: one process. `two`: two, stopped by SIGTERM to the second, resumed with FSDP, and at last with DDP."""
    folder = tmp_path_factory.mktemp("distributed")

    def words(name: str, batch: int, *more: str) -> list[str]:
        return [*TRAINING, *SETTINGS, "--work_dir", str(folder / name), "--batch_size", str(batch), *more]

    finish(start(words("one", 8), 1, folder / "log"))
    stopped = start(words("two", 4), 2, folder / "log", told_to_stop)
    for process in stopped:
        process.join(120)
    codes = [process.exitcode for process in stopped]
    stop(stopped)
    log = (folder / "log").read_text()
    assert codes == [143, 143], log
    assert f"stopped by SIGTERM after step {STOP_AFTER}" in log
    assert list_checkpoints(folder / "two")[-1].name == f"step-{STOP_AFTER}"
    (folder / "stopped.json").write_bytes((folder / "two" / "log.jsonl").read_bytes())
    finish(start(words("two", 4, "--resume_from", "last"), 2, folder / "log", sharded))
    before_last = str(list_checkpoints(folder / "two")[-2])
    finish(start(words("again", 4, "--resume_from", before_last), 2, folder / "log"))
    return folder


def test_losses_and_rates_are_those_of_one_process(runs: Path) -> None:
    one, two = lines(runs / "one"), lines(runs / "two")
    steps = [line["step"] for line in one]
    assert steps == [line["step"] for line in two] == [1, 2, 2, 3, 4, 4, 5, 6, 6]
    for expected, line in zip(one, two, strict=True):
        assert line.get("loss") == pytest.approx(expected.get("loss"), abs=1e-5)
        assert line.get("lr") == expected.get("lr")
    before = [json.loads(line) for line in (runs / "stopped.json").read_text().splitlines()]
    assert two[: len(before)] == before and before[-1]["step"] == STOP_AFTER  # the rest is FSDP's
    assert [line["step"] for line in lines(runs / "again")] == [6, 6]


def test_uneven_shares_count_every_image_once(runs: Path) -> None:
    one, two, again = (json.loads((runs / name / "results.json").read_text()) for name in ("one", "two", "again"))
    assert one["images"]["test"] == 13
    for other in (two, again):
        assert other["test"]["confusion_matrix"] == one["test"]["confusion_matrix"]
        assert other["test"]["intervals"] == one["test"]["intervals"]
        assert other["best_epoch"] == one["best_epoch"]


def test_checkpoints_hold_whole_tensors_whoever_wrote_them(runs: Path) -> None:
    one, two, again = (
        torch_file(runs / name, list_checkpoints(runs / name)[-1].name) for name in ("one", "two", "again")
    )
    assert one.keys() == two.keys() == again.keys() and len(one) > 10
    for name, tensor in one.items():
        if name.endswith("_extra_state"):  # text: statistics of two processes are those of one but for rounding
            continue
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
        torch.testing.assert_close(again[name], two[name], rtol=1e-5, atol=1e-6, msg=name)  # FSDP's step 5, DDP's 6
    adapters = [load_file(runs / name / "best" / "adapter_model.safetensors") for name in ("one", "two")]
    assert adapters[0].keys() == adapters[1].keys()
    configs = [json.loads((runs / name / "best" / "adapter_config.json").read_text()) for name in ("one", "two")]
    assert configs[0]["feature_mean"] == pytest.approx(configs[1]["feature_mean"], rel=1e-9)
