"""`python -m deflect_hf.benchmark gpu` on the CPU, tiny: that it is known to work where a GPU is."""

import json

import pytest

from deflect_hf.benchmark import cost, gpu
from deflect_hf.benchmark.__main__ import main

SMALL = {"size": "tiny", "image_size": 32, "batch_size": 2, "rounds": 1, "bands": 13}
TINY = ["--device", "cpu", *(word for name, value in SMALL.items() for word in (f"--{name}", str(value)))]


def test_the_checks_pass_and_the_methods_are_measured(tmp_path, monkeypatch):
    monkeypatch.setitem(cost.SIZES, "tiny", (32, 3, 4))
    monkeypatch.delitem(gpu.CHECKS, "compile")  # half a minute; tests/tuners compile, too
    monkeypatch.setattr(gpu, "ROWS", gpu.ROWS[:2])
    main(["gpu", "--output", str(tmp_path), *TINY])
    results = {one["check"]: one["result"] for one in json.loads((tmp_path / "gpu.json").read_text())}
    assert set(results) == set(gpu.CHECKS)
    assert results.pop("start and disabled, bfloat16, sdpa by flash").startswith("left out: ")
    assert results.pop("start and disabled, bfloat16, flash_attention_2").startswith("left out: ")
    assert set(results.values()) == {"passed"}
    table = (tmp_path / "cost-13" / "cost.md").read_text()
    assert "13 bands" in table and "bfloat16 (autocast), cpu" in table
    assert [row["row"] for row in json.loads((tmp_path / "cost-13" / "cost.json").read_text())] == list(gpu.ROWS)


def test_a_check_that_fails_is_named_and_the_others_run(tmp_path, monkeypatch, capsys):
    def broken(bench: gpu.Bench) -> None:
        gpu.same([bench.pixels], [bench.pixels + 1.0])

    monkeypatch.setattr(gpu, "CHECKS", {"broken": broken, "whole": lambda bench: None})
    monkeypatch.setattr(cost, "measure", lambda own: None)
    with pytest.raises(SystemExit) as stopped:
        main(["gpu", "--output", str(tmp_path), *TINY])
    assert stopped.value.code == 1
    table = capsys.readouterr().out
    assert "| broken | FAILED: AssertionError: Tensor-likes are not close!" in table and "| whole | passed |" in table
