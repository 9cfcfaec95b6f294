"""Image classification: logits, losses, saving, adapters."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForImageClassification, PreTrainedModel, ViTModel

from deflect_hf.errors import ConfigError, DataError
from deflect_hf.models import EncoderForImageClassification
from deflect_hf.models.checkpointing import enable_checkpointing


@pytest.mark.parametrize("options", [{}, {"head": "mlp", "pooling": "mean", "output_layers": [1, 3]}])
def test_logits_and_round_trip(
    encoder: PreTrainedModel, wide_images: torch.Tensor, options: dict, tmp_path: Path, settings: Callable
) -> None:
    model = EncoderForImageClassification.from_encoder(encoder, id2label={0: "land", 1: "water", 2: "ice"}, **options)
    logits = model(wide_images).logits
    assert logits.shape == (2, 3) and logits.std() > 0
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(again) is EncoderForImageClassification
    assert torch.equal(again(wide_images).logits, logits)
    assert settings(again.config) == settings(model.config)
    assert again.config.label2id["water"] == 1


def test_loss_is_the_cross_entropy_over_known_labels(vit: ViTModel, images: torch.Tensor) -> None:
    model = EncoderForImageClassification.from_encoder(
        vit, num_labels=3, class_weights=[1.0, 2.0, 0.5], label_smoothing=0.1, ignore_index=255
    )
    output = model(images.repeat(2, 1, 1, 1), labels=torch.tensor([2, 255, 0, 1]))
    expected = F.cross_entropy(
        output.logits[[0, 2, 3]], torch.tensor([2, 0, 1]), torch.tensor([1.0, 2.0, 0.5]), label_smoothing=0.1
    )
    torch.testing.assert_close(output.loss, expected)


def test_multi_label_counts_known_labels_only(vit: ViTModel, images: torch.Tensor) -> None:
    model = EncoderForImageClassification.from_encoder(vit, num_labels=2, problem_type="multi_label_classification")
    output = model(images, labels=torch.tensor([[1.0, float("nan")], [0.0, 1.0]]))
    logits = output.logits.flatten()[[0, 2, 3]]
    torch.testing.assert_close(output.loss, F.binary_cross_entropy_with_logits(logits, torch.tensor([1.0, 0.0, 1.0])))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(2, 1, dtype=torch.long), r"^labels have the shape \(2, 1\) instead of \(2,\)\.$"),
        (torch.zeros(2), r"^labels are torch\.float32: of classes they are whole numbers, labels\.long\(\)"),
        (torch.tensor([0, 3]), "labels hold '3', but the model has the classes 0 to 2, and unknown is -100"),
        (torch.tensor([-1, 0]), "labels hold '-1', but"),
    ],
)
def test_labels_that_are_no_classes_are_refused(
    labels: torch.Tensor, message: str, vit: ViTModel, images: torch.Tensor
) -> None:
    model = EncoderForImageClassification.from_encoder(vit, num_labels=3)
    with pytest.raises(DataError, match=message):
        model(images, labels=labels)


def test_names_of_classes_are_a_dict(vit: ViTModel) -> None:
    with pytest.raises(ConfigError, match="id2label is a list: give a dict, the names by n"):
        EncoderForImageClassification.from_encoder(vit, id2label=["corn", "rye"])


def test_gradient_checkpointing_gives_the_same_gradients(encoder: PreTrainedModel, images: torch.Tensor) -> None:
    model = EncoderForImageClassification.from_encoder(encoder, num_labels=3, output_layers=[1, 3])
    gradients = []
    for selective in (None, False, True):
        if selective is not None:
            enable_checkpointing(model, selective)
        model.train().zero_grad()
        torch.manual_seed(0)  # DINOv3 varies its positions at random in training
        model(images, labels=torch.tensor([0, 2])).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    plain, whole, parts = gradients
    assert plain.keys() == whole.keys() == parts.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(whole[name], gradient)
        torch.testing.assert_close(parts[name], gradient)


def test_frozen_encoder_with_checkpointing_still_trains_its_input(vit: ViTModel, images: torch.Tensor) -> None:
    model = EncoderForImageClassification.from_encoder(vit, num_labels=3)
    model.encoder.requires_grad_(False)
    model.enable_input_require_grads()
    assert model.encode(images).layers[0].requires_grad


@pytest.mark.parametrize("encoder", ["vit_mae", "dinov3_vit"], indirect=True)
def test_compiles_as_one_graph(encoder: PreTrainedModel, wide_images: torch.Tensor) -> None:
    model = EncoderForImageClassification.from_encoder(
        encoder, num_labels=3, bands=["B", "G", "R"], base_mean=[0.1] * 3, base_std=[0.2] * 3
    )
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    labels = torch.tensor([0, -100])
    torch.testing.assert_close(compiled(wide_images, labels=labels).loss, model(wide_images, labels=labels).loss)
