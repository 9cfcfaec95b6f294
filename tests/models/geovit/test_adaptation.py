"""Task heads, DEFLECT, LoRA and gradient checkpointing on GeoViT."""

import pytest
import torch
from peft import PeftModel

from deflect_hf import EncoderForSemanticSegmentation, adapt
from deflect_hf.errors import BandError, DataError
from deflect_hf.models.checkpointing import enable_checkpointing
from deflect_hf.models.geovit import GeoViTBackbone
from deflect_hf.tuners.deflect import DeflectConfig, DeflectModel
from tests.models.geovit.conftest import make_encoder
from tests.tuners.tiny import randomise

BANDS = ["B", "G", "R", "RE1", "N2", "S1", "S2"]
RGB, HLS = ["R", "G", "B"], ["B", "G", "R", "N2", "S1", "S2"]
METHODS = {"deflect": {"aux_dim": 16, "rank": 4}, "lora": {"rank": 4, "target": "all-linear"}}


@pytest.fixture
def base(kind):
    """Base bands of the encoder and their normalisation."""
    bands = HLS if kind == "sincos_3d" else RGB
    return {"base_bands": bands, "base_mean": [0.1] * len(bands), "base_std": [0.2] * len(bands)}


@pytest.fixture
def reflectance():
    """(2, 7, 32, 48), in the order of BANDS."""
    return 0.02 + 0.4 * torch.rand(2, len(BANDS), 32, 48, generator=torch.Generator().manual_seed(3))


def segmenter(kind, **options):
    torch.manual_seed(1)
    model = EncoderForSemanticSegmentation.from_encoder(make_encoder(kind), num_labels=3, **options)
    return model.eval()


def adapted(kind, base, method):
    return adapt(segmenter(kind, head="mlp"), method, bands=BANDS, **base, **METHODS[method]).eval()


def frozen_logits(kind, base, reflectance):
    model = segmenter(kind, head="mlp")
    return adapt(model, "frozen", bands=BANDS, **base).eval()(reflectance).logits


def gradients(model, reflectance):
    labels = torch.randint(0, 3, (2, 32, 48), generator=torch.Generator().manual_seed(5))
    model.zero_grad()
    model.train()(reflectance, labels=labels).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", list(METHODS))
def test_adapters_start_at_the_frozen_model_and_learn_alone_with_checkpointing_too(kind, base, reflectance, method):
    model = adapted(kind, base, method)
    logits = model(reflectance).logits
    assert logits.shape == (2, 3, 32, 48)
    torch.testing.assert_close(logits, frozen_logits(kind, base, reflectance), atol=0, rtol=0)
    plain = gradients(randomise(model), reflectance)
    assert set(plain) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(grad.abs().sum() > 0 for grad in plain.values())
    enable_checkpointing(model.base_model.model, selective=True)
    assert all(layer.gradient_checkpointing for layer in model.base_model.model.encoder.modules() if is_block(layer))
    checkpointed = gradients(model, reflectance)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-6, rtol=1e-4)


def is_block(module):
    return type(module).__name__ == "ViTLayer"


def test_every_band_matters_once_deflected_also_loaded_again(kind, base, reflectance, tmp_path):
    model = randomise(adapted(kind, base, "deflect"))
    before = model(reflectance).logits
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(segmenter(kind, head="mlp"), tmp_path).eval()
    assert torch.equal(loaded(reflectance).logits, before)
    for channel in range(len(BANDS)):
        changed = reflectance.clone()
        changed[:, channel] += 0.1
        assert not torch.allclose(model(changed).logits, before, atol=1e-5), BANDS[channel]


def test_gsd_reaches_an_adapted_encoder(reflectance):
    base = {"base_bands": RGB, "base_mean": [0.1] * 3, "base_std": [0.2] * 3}
    model = randomise(adapted("sincos_gsd", base, "deflect"))
    logits = model(reflectance, gsd=torch.tensor([1.0, 10.0])).logits
    plain = model(reflectance).logits
    torch.testing.assert_close(logits[0], plain[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits[1], plain[1], atol=1e-3)


def test_deflected_backbone_returns_maps_of_its_own_width(kind, base, reflectance):
    backbone = GeoViTBackbone(make_encoder(kind, out_indices=[1, 3]).config).eval()
    config = DeflectConfig(bands=BANDS, **base, aux_dim=16, rank=4)
    expected = backbone(reflectance[:, [BANDS.index(band) for band in base["base_bands"]]].sub(0.1).div(0.2))
    model = DeflectModel(backbone, config, "default").eval()
    for ours, theirs in zip(model(reflectance).feature_maps, expected.feature_maps, strict=True):
        assert ours.shape == (2, 32, 4, 6)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_prithvi_keeps_its_own_six_bands(reflectance):
    with pytest.raises(BandError, match="takes 6 channels, but base_bands names 3"):
        adapt(segmenter("sincos_3d"), "deflect", bands=BANDS, aux_dim=16)


def test_series_under_deflect_are_refused():
    base = {"base_bands": HLS, "base_mean": [0.1] * 6, "base_std": [0.2] * 6}
    model = adapt(segmenter("sincos_3d"), "deflect", bands=BANDS, **base, aux_dim=16)
    with pytest.raises(DataError, match=r"must be \(batch, bands, height, width\), not \(1, 7, 2, 16, 16\)"):
        model(torch.rand(1, 7, 2, 16, 16))
    bare = DeflectModel(make_encoder("sincos_3d"), DeflectConfig(bands=BANDS, **base, aux_dim=16), "default")
    with pytest.raises(BandError, match=r"give \(B, C, H, W\)"):
        bare(torch.rand(1, 7, 2, 16, 16))
