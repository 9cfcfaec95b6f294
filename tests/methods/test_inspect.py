"""What is asked of an adapted model, where the images' only near-infrared band is not the encoder's."""

from __future__ import annotations

import pytest
import torch

from deflect_hf.methods import adapt, needed_bands
from deflect_hf.methods.inspect import further_bands
from deflect_hf.models import EncoderForImageClassification
from tests.models.geovit.conftest import make_encoder

BANDS = ["B", "G", "R", "N", "S1", "S2", "A"]
PRITHVI = ["B", "G", "R", "N2", "S1", "S2"]


@pytest.mark.parametrize(
    ("method", "options", "needed", "further"),
    [
        ("lora", {}, ["B", "G", "R", "N", "S1", "S2"], []),
        ("deflect", {"aux_dim": 8}, BANDS, ["A"]),
        ("deflect", {"aux_dim": 8, "band_dropout": 0.1}, ["B", "G", "R", "N", "S1", "S2"], ["A"]),
    ],
)
def test_bands_are_called_as_in_the_images(method: str, options: dict, needed: list[str], further: list[str]) -> None:
    torch.manual_seed(0)
    model = EncoderForImageClassification.from_encoder(make_encoder("sincos_3d"), num_labels=2)
    adapted = adapt(model, method, bands=BANDS, base_bands=PRITHVI, base_mean=[0.1] * 6, base_std=[0.1] * 6, **options)
    assert (needed_bands(adapted), further_bands(adapted)) == (needed, further)
