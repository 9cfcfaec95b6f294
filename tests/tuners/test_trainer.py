"""`transformers.Trainer` trains, saves, resumes and reloads a DEFLECT adapter as it does any other of PEFT's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from torch import nn
from transformers import Trainer, TrainingArguments

from deflect_hf import EncoderForImageClassification, adapt
from tests.tuners.tiny import BANDS, IMAGE, make_encoder, spectral_config

STEPS = 4
CLASSES = 4


def vit_with_its_own_head() -> nn.Module:
    return make_encoder("vit", model="ViTForImageClassification", num_labels=CLASSES)


def dinov3_with_our_head() -> nn.Module:
    torch.manual_seed(0)
    return EncoderForImageClassification.from_encoder(make_encoder("dinov3_vit"), num_labels=CLASSES)


def adapted_vit() -> PeftModel:
    return get_peft_model(vit_with_its_own_head(), spectral_config(modules_to_save=["classifier"]))


def adapted_dinov3() -> PeftModel:
    return adapt(dinov3_with_our_head(), "deflect", bands=BANDS, base_mean=[0.1] * 3, base_std=[0.1] * 3, rank=4)


def examples() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    images = 0.02 + 0.4 * torch.rand(8, len(BANDS), IMAGE, IMAGE, generator=generator)
    return [{"pixel_values": image, "labels": index % CLASSES} for index, image in enumerate(images)]


def trainer(model: PeftModel, folder: Path, **options: Any) -> Trainer:
    torch.manual_seed(0)
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, save_steps=STEPS // 2, per_device_train_batch_size=4,
        learning_rate=0.01, logging_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, **options,
    )  # fmt: skip
    return Trainer(model=model, args=arguments, train_dataset=examples())


def losses(run: Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("make_base", "make_adapted", "reentrant"),
    [(vit_with_its_own_head, adapted_vit, True), (dinov3_with_our_head, adapted_dinov3, False)],
)
def test_resumed_training_is_the_uninterrupted_one(make_base, make_adapted, reentrant, tmp_path):
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    torch.manual_seed(0)
    model = make_adapted()
    start = {key: value.clone() for key, value in get_peft_model_state_dict(model).items()}
    through = trainer(model, tmp_path / "through", **options)
    through.train()
    expected = get_peft_model_state_dict(model)
    assert len(losses(through)) == STEPS
    weights = {key: value for key, value in expected.items() if not key.endswith("_extra_state")}
    assert not any(torch.equal(value, start[key]) for key, value in weights.items())

    checkpoint = tmp_path / "through" / f"checkpoint-{STEPS // 2}"
    assert not (checkpoint / "model.safetensors").exists()
    with safe_open(checkpoint / "adapter_model.safetensors", "pt") as file:
        assert all("deflect_" in key or "classifier" in key or "head" in key for key in file.keys())  # noqa: SIM118

    torch.manual_seed(99)  # the weights of this model come from the checkpoint
    other = make_adapted()
    resumed = trainer(other, tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    found = get_peft_model_state_dict(other)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert losses(resumed) == losses(through)

    through.save_model(str(tmp_path / "final"))
    again = PeftModel.from_pretrained(make_base(), tmp_path / "final").eval()
    pixels = torch.stack([example["pixel_values"] for example in examples()])
    assert torch.equal(again(pixel_values=pixels).logits, model.eval()(pixel_values=pixels).logits)


def test_a_model_trained_in_full_is_resumed_whole(tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = EncoderForImageClassification.from_encoder(make_encoder("vit"), num_labels=CLASSES)
        return adapt(model, "full", bands=BANDS, base_mean=[0.1] * 3, base_std=[0.1] * 3)

    through = trainer(make(), tmp_path / "through")
    through.train()
    resumed = trainer(make(), tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "through" / f"checkpoint-{STEPS // 2}"))
    assert losses(resumed) == losses(through)
    assert all(map(torch.equal, resumed.model.state_dict().values(), through.model.state_dict().values()))
    through.save_model(str(tmp_path / "final"))
    again = EncoderForImageClassification.from_pretrained(tmp_path / "final").state_dict()
    assert all(torch.equal(again[name], value) for name, value in through.model.state_dict().items())
