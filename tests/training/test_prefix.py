"""The frozen prefix kept on disk: the same training, its blocks run once per image, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from deflect_hf.config.data import AugmentationArguments
from deflect_hf.errors import ConfigError
from deflect_hf.methods import adapt
from deflect_hf.models import EncoderForImageClassification
from deflect_hf.training.prefix import with_stored_prefix
from deflect_hf.training.run import run
from tests.tiny_runs import tiny_run
from tests.tuners.tiny import BANDS, DEPTH, make_encoder, randomise

FIXED = AugmentationArguments(random_crop=None, horizontal_flip=0.0, vertical_flip=0.0, rot90=False)
LATE = {"layers_to_transform": [DEPTH - 1]}


def late_model(architecture: str = "vit", encoder: dict | None = None, head: dict | None = None, **method) -> nn.Module:
    torch.manual_seed(0)
    task = EncoderForImageClassification.from_encoder(
        make_encoder(architecture, **(encoder or {})), num_labels=3, **(head or {})
    )
    options = {**LATE, "aux_dim": 16, **method}
    bands = {"bands": BANDS, "base_bands": ["R", "G", "B"], "base_mean": [0.1] * 3, "base_std": [0.1] * 3}
    return randomise(adapt(task, "deflect", **bands, **options)).train()


def losses(model: nn.Module, images: torch.Tensor, epochs: int = 2) -> list[float]:
    """Of training on the images in batches of two, in another order each epoch."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    told = []
    for epoch in range(epochs):
        for index in torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch)).split(2):
            loss = model(images[index], labels=index % 3).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            told.append(loss.item())
    return told


@pytest.mark.parametrize("architecture", ["vit", "dinov2_with_registers"])
def test_losses_are_the_same_and_the_prefix_runs_once_per_image(architecture: str, tmp_path: Path) -> None:
    images = torch.rand(4, len(BANDS), 32, 32)
    images[0, 0, 0, 0] = torch.nan
    expected = losses(late_model(architecture), images)
    model = late_model(architecture)
    stored = with_stored_prefix(model, FIXED, tmp_path)
    seen: list[int] = []
    prefix = next(module for module in stored.modules() if type(module).__name__ == "StoredPrefix")
    prefix.blocks[0].register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    torch.testing.assert_close(losses(stored, images), expected, rtol=1e-5, atol=1e-6)
    assert sum(seen) == len(images) == len(list(tmp_path.glob("*/*.safetensors")))
    # the model itself was trained, and evaluates without the files
    stored.eval(), model.eval()
    torch.testing.assert_close(model(images).logits, stored(images).logits, rtol=1e-5, atol=1e-6)


def test_other_weights_and_broken_files_are_never_read(tmp_path: Path) -> None:
    images = torch.rand(2, len(BANDS), 32, 32)
    expected = with_stored_prefix(late_model(), FIXED, tmp_path)(images).logits
    next(tmp_path.glob("*/*.safetensors")).write_bytes(b"cut")
    assert torch.equal(with_stored_prefix(late_model(), FIXED, tmp_path)(images).logits, expected)
    other = late_model(encoder={"intermediate_size": 48})
    changed = with_stored_prefix(other, FIXED, tmp_path)
    assert torch.equal(changed(images).logits, other(images).logits)


@pytest.mark.parametrize(
    ("augmentation", "options", "message"),
    [
        (FIXED, {"layers_to_transform": None}, "there is no frozen block before it"),
        (FIXED, {"band_dropout": 0.5}, r"not go with method\.band_dropout\. Fix"),
        (AugmentationArguments(random_crop=None, rot90=True), {}, r"not go with augmentation\.rot90\. Fix"),
        (FIXED, {"encoder": {"hidden_dropout_prob": 0.1}}, "an encoder with 'hidden_dropout_prob'"),
        (FIXED, {"architecture": "dinov3_vit"}, "rotary positions"),
        (FIXED, {"head": {"output_layers": [0, 2]}}, r"a head that reads the blocks \[0, 2\], not the last one alone"),
    ],
)
def test_what_changes_from_epoch_to_epoch_is_refused(augmentation, options, message, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        with_stored_prefix(late_model(**options), augmentation, tmp_path)


def test_a_run_with_the_prefix_kept_has_the_losses_and_scores_of_one_without(tmp_path: Path) -> None:
    words = ["--augmentation.horizontal_flip", "0", "--augmentation.rot90", "false"]
    words += ["--method.layers_to_transform", "-1", "--dataset.num_samples", "24"]
    told = []
    for kept in ("false", "true"):
        folder = tmp_path / kept
        results, *_ = run(tiny_run("classification", *words, "--cache_prefix", kept, "--work_dir", str(folder)))
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        told.append(([line["loss"] for line in lines if "loss" in line], results["test"]["accuracy"]))
    assert told[1][0] == pytest.approx(told[0][0], rel=1e-4) and len(told[0][0]) >= 8
    assert told[1][1] == told[0][1]
    assert len(list((folder / "prefix").glob("*/*.safetensors"))) == results["images"]["train"]
