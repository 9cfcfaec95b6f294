"""What the launcher says and what the run says are brought together, or refused."""

import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import DistributedType
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils.launch import prepare_multi_gpu_env

from deflect_hf.artifacts.processes import launcher_precision, make_accelerator
from deflect_hf.config.run import EncoderArguments, RunArguments
from deflect_hf.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]


def config(**options: bool) -> RunArguments:
    return RunArguments(encoder=EncoderArguments(name_or_path="x"), **options)


def test_the_launchers_precision_becomes_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not launcher_precision(config()).bf16
    assert launcher_precision(config(fp16=True)).fp16
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert launcher_precision(config()).bf16 and launcher_precision(config(bf16=True)).bf16
    with pytest.raises(ConfigError, match="accelerate launch says --mixed_precision bf16, and the run --fp16"):
        launcher_precision(config(fp16=True))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ConfigError, match="accelerate launch says --mixed_precision fp8"):
        launcher_precision(config())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "leave it at 1 there, and give --accumulate 4"),
        ("ACCELERATE_USE_FSDP", "true", r"FSDP\) on accelerators alone, and this runs on cpu .* with --multi_gpu"),
    ],
)
def test_what_the_launcher_asks_for_in_vain_is_refused(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        make_accelerator(config())


def test_trainings_of_one_process_may_differ_in_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    first, second = (make_accelerator(config(**options)) for options in ({"bf16": True}, {}))
    assert (first.mixed_precision, second.mixed_precision) == ("bf16", "no")
    AcceleratorState._shared_state["distributed_type"] = DistributedType.FSDP
    with pytest.raises(ConfigError, match=r"has trained in precision no with FSDP, which .* to bf16 any more"):
        make_accelerator(config(bf16=True))


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs" / "accelerate").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_launcher_files_are_ones_that_accelerate_and_the_training_take(path: Path) -> None:
    words = ["--config_file", str(path), *(["--machine_rank", "1"] if path.stem == "multi_node" else []), "train.py"]
    told = _validate_launch_command(launch_command_parser().parse_args(words))[0]
    assert (told.multi_gpu, told.use_fsdp) == (path.stem != "fsdp", path.stem == "fsdp")
    assert f"--config_file configs/accelerate/{path.name}" in path.read_text()
    environment = prepare_multi_gpu_env(told)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    assert environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1") == "1"
    if told.use_fsdp:
        assert environment["FSDP_VERSION"] == "2"
        for unsupported in ("OFFLOAD_PARAMS", "CPU_RAM_EFFICIENT_LOADING", "ACTIVATION_CHECKPOINTING"):
            assert environment[f"FSDP_{unsupported}"].lower() == "false"


LEAVING = """
import atexit, sys
from deflect_hf.training.distributed_exit import distributed_exit
atexit.register(print, "the interpreter's end")
with distributed_exit():
    print("done")
    if sys.argv[1] != "0":
        raise SystemExit(int(sys.argv[1])) if sys.argv[1] != "1" else OSError("broken")
"""


@pytest.mark.parametrize(("processes", "status"), [("2", 0), ("2", 143), ("2", 1), ("1", 2)])
def test_several_processes_leave_without_the_interpreters_end(processes: str, status: int, tmp_path: Path) -> None:
    # the module itself, without the package, which imports torch
    source = Path(sys.modules["deflect_hf"].__path__[0]) / "training" / "distributed_exit.py"
    script = LEAVING.replace("from deflect_hf.training.distributed_exit", "from distributed_exit")
    environment = {"WORLD_SIZE": processes, "PYTHONPATH": str(source.parent)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(status)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == status
    assert done.stdout == "done\n" + ("the interpreter's end\n" if processes == "1" else "")
    assert ("OSError: broken" in done.stderr) == (status == 1)
