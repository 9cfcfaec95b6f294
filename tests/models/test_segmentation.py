"""Semantic segmentation and the heads: logits, losses, sizes, saving, adapters."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSemanticSegmentation, PreTrainedModel, ViTConfig, ViTModel

from deflect_hf.errors import ConfigError, DataError
from deflect_hf.models import EncoderForSemanticSegmentation, EncoderForSemanticSegmentationConfig
from deflect_hf.models.configuration import evenly_spaced_layers
from deflect_hf.models.heads import segmentation_head

HEADS = ["linear", "mlp", "conv", "upernet"]


@pytest.mark.parametrize("head", HEADS)
def test_logits_and_round_trip(
    encoder: PreTrainedModel, wide_images: torch.Tensor, head: str, tmp_path: Path, settings: Callable
) -> None:
    model = EncoderForSemanticSegmentation.from_encoder(encoder, num_labels=5, head=head, head_channels=16)
    logits = model(wide_images).logits
    assert logits.shape == (2, 5, 32, 48) and logits.std() > 0
    model.save_pretrained(tmp_path)
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert type(again) is EncoderForSemanticSegmentation
    saved, loaded = model.state_dict(), again.state_dict()
    assert saved.keys() == loaded.keys() and all(torch.equal(saved[name], loaded[name]) for name in saved)
    # Not bit for bit: loaded weights lie in memory as in the file, and convolutions round by alignment.
    torch.testing.assert_close(again(wide_images).logits, logits, rtol=1e-5, atol=1e-7)
    assert settings(again.config) == settings(model.config)


def test_settings_equal_to_another_heads_defaults_survive_saving(vit: ViTModel, tmp_path: Path) -> None:
    """Configurations are saved as differences from their defaults, which depend on the head."""
    model = EncoderForSemanticSegmentation.from_encoder(
        vit, num_labels=2, head="upernet", head_channels=256, head_dropout=0, output_layers=[3, 3, 3, 3]
    )
    model.config.save_pretrained(tmp_path)
    config = EncoderForSemanticSegmentationConfig.from_pretrained(tmp_path)
    assert (config.hidden_channels, config.dropout, config.feature_layers) == (256, 0.0, [3, 3, 3, 3])


def test_default_layers_per_head(vit: ViTModel) -> None:
    assert evenly_spaced_layers(12, 4) == [2, 5, 8, 11]
    assert evenly_spaced_layers(24, 4) == [5, 11, 17, 23]
    assert evenly_spaced_layers(2, 4) == [0, 0, 1, 1]
    for head in HEADS:
        config = EncoderForSemanticSegmentationConfig(encoder_config=vit.config, head=head)
        assert config.feature_layers == ([0, 1, 2, 3] if head == "upernet" else [3])


@pytest.mark.parametrize(("size", "millions"), [(384, 30.90), (768, 39.35), (1024, 46.96)])
def test_upernet_has_the_published_number_of_parameters(size: int, millions: float) -> None:
    """PANGAEA's UPerNet at 15 classes. Ours lacks the biases of its 12 convolutions in front of a BatchNorm."""
    encoder = ViTConfig(hidden_size=size, num_hidden_layers=12, num_attention_heads=size // 64)
    config = EncoderForSemanticSegmentationConfig(encoder_config=encoder, head="upernet", num_labels=15)
    with torch.device("meta"):
        head = segmentation_head(config)
    count = sum(parameter.numel() for parameter in head.parameters())
    assert round((count + 12 * 512) / 1e6, 2) == millions


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_of_the_head_learns(vit: ViTModel, wide_images: torch.Tensor, head: str) -> None:
    options = {"auxiliary_loss_weight": 0.4} if head == "upernet" else {}
    model = EncoderForSemanticSegmentation.from_encoder(vit, num_labels=3, head=head, head_channels=16, **options)
    labels = torch.randint(3, (2, 32, 48), generator=torch.Generator().manual_seed(0))
    model.train()(wide_images, labels=labels).loss.backward()
    for name, parameter in model.head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_auxiliary_head_counts_in_training_only(vit: ViTModel, wide_images: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = EncoderForSemanticSegmentation.from_encoder(
        vit, num_labels=3, head="upernet", head_channels=8, head_dropout=0, auxiliary_loss_weight=0.4
    )
    labels = torch.zeros(2, 32, 48, dtype=torch.long)
    output = model(wide_images, labels=labels)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels))
    model.train()
    output = model(wide_images, labels=labels)
    coarse = model.head(model.encode(wide_images).patch_maps()).auxiliary
    auxiliary = F.cross_entropy(F.interpolate(coarse, size=(32, 48), mode="bilinear"), labels)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels) + 0.4 * auxiliary)


def test_loss_ignores_pixels_and_stays_finite_without_labels(vit: ViTModel, images: torch.Tensor) -> None:
    model = EncoderForSemanticSegmentation.from_encoder(vit, num_labels=3, class_weights=[1, 2, 0])
    labels = torch.randint(3, (2, 32, 32), generator=torch.Generator().manual_seed(0))
    labels[:, :20] = -100
    output = model(images, labels=labels)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels, torch.tensor([1.0, 2.0, 0.0])))
    model.config.ignore_index = 255
    bytes_ = torch.where(labels < 0, 255, labels).to(torch.uint8)
    assert torch.equal(model(images, labels=bytes_).loss, output.loss)
    model.config.ignore_index = -100
    with pytest.raises(
        DataError, match=r"labels hold '255', but the model has the classes 0 to 2, and unknown is -100"
    ):
        model(images, labels=bytes_)
    loss = model(images, labels=torch.full_like(labels, -100)).loss
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_regression_per_pixel(vit: ViTModel, images: torch.Tensor) -> None:
    model = EncoderForSemanticSegmentation.from_encoder(vit, num_labels=1, problem_type="regression")
    labels = torch.rand(2, 32, 32)
    labels[0] = float("nan")
    output = model(images, labels=labels)
    torch.testing.assert_close(output.loss, F.mse_loss(output.logits[1, 0], labels[1]))


def test_mask_of_another_size_is_refused(vit: ViTModel, images: torch.Tensor) -> None:
    model = EncoderForSemanticSegmentation.from_encoder(vit, num_labels=3)
    with pytest.raises(DataError, match=r"shape \(2, 16, 16\) instead of \(2, 32, 32\), batch x height x width"):
        model(images, labels=torch.zeros(2, 16, 16, dtype=torch.long))


def test_upernet_limits(vit: ViTModel, images: torch.Tensor) -> None:
    model = EncoderForSemanticSegmentation.from_encoder(vit, num_labels=3, head="upernet", head_channels=8)
    assert model(images[:1]).logits.shape == (1, 3, 32, 32)
    with pytest.raises(DataError, match="cannot train on a batch of one image"):
        model.train()(images[:1])
    with pytest.raises(DataError, match="2 x 2 patches or more, not 1 x 4"):
        model(images[:, :, :8])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "upernet", "output_layers": [1, 2]}, r"reads exactly 4 blocks, for example \[0, 1, 2, 3\]"),
        ({"auxiliary_loss_weight": 0.4}, "is for the heads 'upernet', 'pixel'"),
        ({"head": "conv", "head_channels": 3}, "head_channels=3 must be at least 4 for the conv head"),
        ({"problem_type": "regression"}, "predicts one value: num_labels=3"),
        ({"problem_type": "multi_label_classification"}, "choose from 'single_label_classification', 'regression'"),
    ],
)
def test_options_that_do_not_fit(vit: ViTModel, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EncoderForSemanticSegmentation.from_encoder(vit, num_labels=3, **options)


@pytest.mark.parametrize("head", ["linear", "upernet"])
def test_adapter_with_its_head_and_batch_statistics(
    vit: ViTModel, wide_images: torch.Tensor, head: str, tmp_path: Path
) -> None:
    vit.save_pretrained(tmp_path / "encoder")
    options = {"num_labels": 3, "head": head, "head_channels": 8}
    if head == "upernet":
        options["auxiliary_loss_weight"] = 0.4
    model = get_peft_model(
        EncoderForSemanticSegmentation.from_encoder(tmp_path / "encoder", **options),
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["head"], init_lora_weights=False),
    )
    labels = torch.zeros(2, 32, 48, dtype=torch.long)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model.train()(wide_images, labels=labels).loss.backward()
    optimizer.step()
    logits = model.eval()(wide_images).logits
    model.save_pretrained(tmp_path / "adapter")
    fresh = EncoderForSemanticSegmentation.from_encoder(tmp_path / "encoder", **options)
    again = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    assert torch.equal(again(wide_images).logits, logits)
    with again.disable_adapter():
        assert not torch.equal(again(wide_images).logits, logits)


@pytest.mark.parametrize("head", ["conv", "upernet"])
def test_compiles_as_one_graph(vit: ViTModel, wide_images: torch.Tensor, head: str) -> None:
    model = EncoderForSemanticSegmentation.from_encoder(vit, num_labels=3, head=head, head_channels=8)
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    labels = torch.zeros(2, 32, 48, dtype=torch.long)
    torch.testing.assert_close(compiled(wide_images, labels=labels).loss, model(wide_images, labels=labels).loss)


def test_bfloat16_autocast_gives_a_float32_loss(vit: ViTModel, wide_images: torch.Tensor) -> None:
    model = EncoderForSemanticSegmentation.from_encoder(vit, num_labels=3, head="conv", head_channels=8)
    labels = torch.zeros(2, 32, 48, dtype=torch.long)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(wide_images, labels=labels).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, model(wide_images, labels=labels).loss, rtol=0.05, atol=0.05)
