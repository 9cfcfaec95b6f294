"""``--output embeddings``: the encoder's tokens as a raster."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deflect_hf.errors import ConfigError, UnsupportedOperationError
from deflect_hf.inference import cli
from deflect_hf.inference.predictor import Predictor
from tests.inference.folders import ALL_BANDS, encoder_folder, result_folder
from tests.inference.scenes_and_models import (
    BANDS,
    PATCH,
    Stub,
    map_of,
    predictor_of,
    read,
    small_blocks,
    stored,
    write_scene,
)


class Means(nn.Module):
    """An encoder whose tokens are the means of their patches, behind one that belongs to no patch."""

    def forward(self, pixel_values: Tensor) -> Any:
        """(B, C, H, W) -> last_hidden_state (B, 1 + h * w, C)"""
        tokens = F.avg_pool2d(torch.nan_to_num(pixel_values), PATCH).flatten(2).mT
        return SimpleNamespace(last_hidden_state=F.pad(tokens, (0, 0, 1, 0), value=9.0))


class Tokens(Stub):
    """A model around that encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Means()
        self.config.encoder_config.hidden_size = len(BANDS)

    def predict(self, pixel_values: Tensor) -> Tensor:
        """Without looking at the tokens."""
        self.encoder(pixel_values)
        return super().predict(pixel_values)


@pytest.mark.parametrize("resized", [None, 16])
def test_tokens_of_all_windows_lie_on_one_grid(
    resized: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)
    monkeypatch.setattr("deflect_hf.raster.maps.MOST_BANDS", 2)  # so that several squares are written
    monkeypatch.setattr("deflect_hf.raster.maps.DEEP_SQUARE", 16)
    side = PATCH if resized is None else 32 * PATCH // resized
    values = np.repeat(np.repeat(stored(300 // side + 1, 180 // side + 1), side, 1), side, 2)[:, :300, :180]
    holes = values.copy()
    holes[:, side : 2 * side, : side + 1] = -9999  # the first patch of the second row, and a part of the next
    scene = write_scene(tmp_path / "in.tif", holes)
    size = None if resized is None else {"height": resized, "width": resized}
    target = map_of(predictor_of(Tokens(), size=size), scene, tmp_path / "out.tif", output="embeddings")
    with rasterio.open(target) as made, rasterio.open(scene) as image:
        assert made.transform == image.transform @ rasterio.Affine.scale(side) and made.crs == image.crs
        assert made.descriptions == ("embedding_0", "embedding_1", "embedding_2")
        assert set(made.dtypes) == {"float32"} and made.block_shapes[0] == (16, 16)
        found = made.read()
    expected = values[:, ::side, ::side] * 1e-4
    assert found.shape == expected.shape and np.isnan(found[:, 1, 0]).all() and np.isnan(found).sum() == 3
    known = np.isfinite(found)
    known[:, -1], known[..., -1], known[:, 1, 1] = False, False, False  # tokens that lie over something unmeasured
    # resizing mixes in a little of the neighbours
    np.testing.assert_allclose(found[known], expected[known], atol=1e-6 if resized is None else 0.02)


@pytest.mark.parametrize(("task", "zoom"), [("segmentation", 1), ("segmentation", 2), ("classification", 1)])
def test_the_command_writes_the_tokens_of_the_adapted_encoder(
    task: str, zoom: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, options = encoder_folder(tmp_path / "encoder"), {"zoom": zoom}
    run = result_folder(tmp_path / "run", encoder, task=task, model_options=options, aux_dim=8, rank=2)
    values = np.random.default_rng(0).random((len(ALL_BANDS), 32, 32), dtype=np.float32) * 0.4
    scene = write_scene(tmp_path / "in.tif", values, nodata=float("nan"), descriptions=ALL_BANDS)
    target = tmp_path / "out.tif"
    words = [str(scene), str(target), "--adapter", str(run), "--output", "embeddings", "--window", "32"]
    cli.main(words)
    predictor = Predictor.from_folder(run, device="cpu")
    kept: list[Tensor] = []
    predictor.model.get_base_model().encoder.register_forward_hook(
        lambda *arguments: kept.append(arguments[2].last_hidden_state)
    )
    predictor(values)
    found = read(target)
    assert found.shape[1:] == (4 * zoom, 4 * zoom)
    assert "embeddings of" in capsys.readouterr().out
    np.testing.assert_allclose(found.reshape(len(found), -1).T, kept[0][0, -found[0].size :].numpy(), atol=1e-5)
    cli.main(words)
    assert "finished before" in capsys.readouterr().out


def test_what_has_no_tokens_on_whole_pixels_is_refused(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "in.tif", stored(64, 64))
    with pytest.raises(UnsupportedOperationError, match="Stub has no encoder of image patches"):
        map_of(predictor_of(Stub()), scene, tmp_path / "out.tif", output="embeddings")
    resized = predictor_of(Tokens(), size={"height": 24, "width": 24})
    with pytest.raises(ConfigError, match=r"windows of 32 pixels hold 3 tokens a side, .* give --window 33 for"):
        map_of(resized, scene, tmp_path / "out.tif", output="embeddings")
