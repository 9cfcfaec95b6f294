"""The heads at pixel level: tokens of the encoder and all bands of each pixel, by itself or in a U-Net."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel

from deflect_hf.errors import BandError, ConfigError, DataError
from deflect_hf.methods import adapt, needed_bands
from deflect_hf.models import EncoderForSemanticSegmentation
from tests.tuners.tiny import BANDS, make_encoder

STATISTICS = {"pixel_bands": BANDS, "pixel_mean": [0.2] * 6, "pixel_std": [0.1] * 6}


def make_model(**options: Any) -> EncoderForSemanticSegmentation:
    torch.manual_seed(0)
    given = {"num_labels": 3, "head": "pixel", **STATISTICS, **options}
    return EncoderForSemanticSegmentation.from_encoder(make_encoder(), **given)


def make_adapted(method: str, head: str) -> torch.nn.Module:
    statistics: dict[str, Any] = {"base_mean": [0.2] * 3, "base_std": [0.1] * 3}
    return adapt(make_model(head=head), method, bands=BANDS, **statistics)


@pytest.mark.parametrize("head", ["pixel", "unet"])
@pytest.mark.parametrize("method", ["deflect", "lora", "frozen", "full"])
def test_every_method_trains_it_and_every_pixel_has_its_own_answer(
    method: str, head: str, reflectance: torch.Tensor
) -> None:
    model = make_adapted(method, head)
    output = model(pixel_values=reflectance, labels=torch.zeros(2, 32, 32, dtype=torch.long))
    output.loss.backward()
    trained = {name: p for name, p in model.named_parameters() if "head." in name and p.requires_grad}
    assert len(trained) == {"pixel": 10, "unet": 50}[head]
    assert all(p.grad is not None and p.grad.any() for p in trained.values())
    assert needed_bands(model) == BANDS
    changed = reflectance.clone()
    changed[0, 5, 10, 10] += 0.2  # one pixel of a band that the encoder of the other methods does not see
    with torch.no_grad():
        moved = (model.eval()(pixel_values=changed).logits - model(pixel_values=reflectance).logits).abs().amax(dim=1)
    assert moved[0, 10, 10] > 0 and not moved[1].any()
    if method != "deflect":
        assert (moved.count_nonzero() == 1) == (head == "pixel")


@pytest.mark.parametrize("head", ["pixel", "unet"])
def test_what_was_not_measured_counts_as_that_and_gives_finite_gradients(head: str, reflectance: torch.Tensor) -> None:
    model = make_model(head=head, bands=BANDS, base_mean=[0.2] * 3, base_std=[0.1] * 3)
    reflectance[0, :, :8] = torch.nan
    at_the_mean = reflectance.clone()
    at_the_mean[0, :, :8] = 0.2
    model(reflectance, labels=torch.zeros(2, 32, 32, dtype=torch.long)).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.head.parameters())
    with torch.no_grad():
        missing, measured = model(reflectance).logits, model(at_the_mean).logits
    assert missing.isfinite().all()
    assert not torch.allclose(missing[0, :, :8], measured[0, :, :8])
    if head == "pixel":
        torch.testing.assert_close(missing[0, :, 8:], measured[0, :, 8:])


@pytest.mark.parametrize("size", [(8, 8), (9, 33), (70, 16)])
def test_unet_takes_any_size_and_its_tokens_count(size: tuple[int, int]) -> None:
    model = make_model(head="unet", bands=BANDS, base_mean=[0.2] * 3, base_std=[0.1] * 3)
    images = torch.rand(2, 6, *size)
    images = F.pad(images, (0, -size[1] % 8, 0, -size[0] % 8), value=torch.nan)
    assert model.train()(images).logits.shape[-2:] == images.shape[-2:]
    before = model.eval()(images).logits
    with torch.no_grad():
        model.head.reduce.bias += 1
        assert not torch.allclose(model(images).logits, before)
    if size == (8, 8):
        with pytest.raises(DataError, match="cannot train on a batch of one image of 8 x 8 pixels"):
            model.train()(images[:1])


def test_with_an_auxiliary_loss_pixels_answer_without_tokens_too(reflectance: torch.Tensor) -> None:
    options = {"bands": BANDS, "base_mean": [0.2] * 3, "base_std": [0.1] * 3, "auxiliary_loss_weight": 0.5}
    model = make_model(**options, head_dropout=0)
    labels = torch.zeros(2, 32, 32, dtype=torch.long)
    output, answer = model.train()(reflectance, labels=labels), model.eval()(reflectance).logits
    with torch.no_grad():
        model.head.reduce.weight.zero_()
        model.head.reduce.bias.zero_()
        alone = model(reflectance).logits
    torch.testing.assert_close(
        output.loss, F.cross_entropy(output.logits, labels) + 0.5 * F.cross_entropy(alone, labels)
    )
    torch.testing.assert_close(answer, (output.logits + alone) / 2)


@pytest.mark.parametrize("head", ["pixel", "unet"])
@pytest.mark.parametrize("method", ["deflect", "full"])
def test_it_comes_back_from_its_files(method: str, head: str, reflectance: torch.Tensor, tmp_path: Path) -> None:
    model = make_adapted(method, head)
    with torch.no_grad():
        model.train()(pixel_values=reflectance)  # moves the running statistics of a BatchNorm
    model.eval()
    model.save_pretrained(tmp_path)
    if method == "full":
        again = EncoderForSemanticSegmentation.from_pretrained(tmp_path)
    else:
        again = PeftModel.from_pretrained(make_model(head=head), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(pixel_values=reflectance).logits, model(pixel_values=reflectance).logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pixel_bands": None}, "head='pixel' reads all bands: give pixel_bands"),
        ({"pixel_std": [0.1] * 5}, "as many pixel_mean and pixel_std"),
        ({"pixel_std": [0.1] * 5 + [0.0]}, "deviations above 0"),
        ({"head": "linear"}, "pixel_std are of 'pixel', 'unet', not 'linear'"),
        ({"bands": BANDS[::-1]}, "are the bands of pixel_values, like bands="),
    ],
)
def test_statistics_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_model(**options)


def test_other_channels_are_refused(reflectance: torch.Tensor) -> None:
    with pytest.raises(BandError, match="has 3 channels, but the head reads 6 bands"):
        make_model()(reflectance[:, :3])
