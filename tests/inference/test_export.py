"""Trained models as files for other programs: what they compute, what is refused, what is written beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deflect_hf.inference import export as exporting
from deflect_hf.inference.export import main
from deflect_hf.inference.predictor import Predictor
from tests.inference.folders import ALL_BANDS, encoder_folder, images, result_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    encoder = encoder_folder(folder / "encoder", num_hidden_layers=1)
    options = {"aux_dim": 8, "rank": 2, "indices": None, "layers_to_transform": None}
    return result_folder(folder / "run" / "best", encoder, crop=16, **options).parent


def partly_measured(count: int) -> torch.Tensor:
    pixel_values = images(count, 16)
    pixel_values[0, :, :5, :5] = torch.nan
    return pixel_values


def test_an_exported_program_gives_what_the_predictor_gives_for_any_number_of_images(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.pt2"
    main([str(run), str(file)])
    assert str(file) in capsys.readouterr().out
    program = torch.export.load(file).module()
    for count in (1, 5):
        pixel_values = partly_measured(count)
        expected = Predictor.from_folder(run, device="cpu").probabilities(pixel_values)
        torch.testing.assert_close(program(pixel_values), expected, rtol=0, atol=1e-5, equal_nan=True)
    card = json.loads((tmp_path / "model.pt2.json").read_text())["properties"]
    assert card["mlm:input"][0]["bands"] == ALL_BANDS
    assert card["mlm:input"][0]["input"]["shape"] == [-1, 6, 16, 16]
    assert card["mlm:output"][0]["result"]["shape"] == [-1, 2, 16, 16]
    assert [row["name"] for row in card["mlm:output"][0]["classification:classes"]] == ["land", "water"]

    with pytest.raises(SystemExit):
        main([str(run), str(file)])
    assert f"{file} is there already" in capsys.readouterr().err

    before = file.read_bytes()
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: None)  # takes seconds, and was seen above
    monkeypatch.setattr(exporting, "write_pt2", lambda *_: lambda pixel_values: program(pixel_values) + 1e-4)
    with pytest.raises(SystemExit):
        main([str(run), str(file), "--overwrite", "true"])
    assert "is not written: it would differ from the trained model by 1.0e-04" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt2", "model.pt2.json"]


def test_onnx_gives_what_the_predictor_gives(run: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = tmp_path / "model.onnx"
    main([str(run), str(file)])
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    pixel_values = partly_measured(4)
    found = torch.from_numpy(session.run(None, {"pixel_values": pixel_values.numpy()})[0])
    expected = Predictor.from_folder(run, device="cpu").probabilities(pixel_values)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, equal_nan=True)


def test_another_ending_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(run), str(tmp_path / "model.pt")])
    assert "must end in .pt2 (torch.export) or in .onnx" in capsys.readouterr().err
