"""Every type of encoder, from its folder through a whole run to equal predictions; and the guide's table of them."""

from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import nn

import deflect_hf
from deflect_hf.errors import ArchitectureError
from deflect_hf.methods import adapt
from deflect_hf.models import EncoderForImageClassification, load_encoder
from deflect_hf.models.geovit import GeoViTConfig, GeoViTModel
from deflect_hf.tuners.deflect.architectures import ARCHITECTURES, find_encoder, outermost_modules
from tests.training.test_run import train
from tests.tuners import tiny

ENCODERS = [*tiny.ENCODERS, *tiny.FURTHER, "geovit"]
GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "guide.md").read_text(encoding="utf-8")
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 9}
TEXT |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def make(name: str) -> nn.Module:
    if name != "geovit":
        return tiny.make_encoder(name)
    torch.manual_seed(0)
    return GeoViTModel(GeoViTConfig(**tiny.SIZES, position_embedding="sincos_gsd")).eval()


@pytest.mark.parametrize("name", ENCODERS)
def test_it_is_adapted_trained_saved_and_loaded(name: str, tmp_path: Path, reflectance: torch.Tensor) -> None:
    alone = get_peft_model(make(name), tiny.spectral_config())
    deflect_hf.check(alone)
    source = tmp_path / "encoder"
    make(name).save_pretrained(source)
    words = ["--encoder.random", "null", "--encoder.name_or_path", str(source), "--segmentor.output_layers", "null"]
    words += ["--dataset.num_samples", "16", "--epochs", "1"]
    results = train(tmp_path / "run", *words, task="segmentation")  # it checks the model, loads it again and tests it
    assert results["test"]["confusion_matrix"]

    frozen = EncoderForImageClassification.from_encoder(source, num_labels=3, pooling="mean")
    class_token = frozen.encode(reflectance[:, :3]).layers[0].shape[1] > (tiny.IMAGE // tiny.PATCH) ** 2
    model = adapt(frozen, "deflect", bands=tiny.BANDS, base_mean=[0.1] * 3, base_std=[0.1] * 3)
    deflect_hf.check(model)
    logits = tiny.randomise(model).eval()(reflectance).logits
    model.save_pretrained(tmp_path / "adapter")
    fresh = EncoderForImageClassification.from_encoder(source, num_labels=3, pooling="mean")
    assert torch.equal(PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()(reflectance).logits, logits)
    assert row(alone.get_base_model(), class_token) in GUIDE


def row(model: nn.Module, class_token: bool) -> str:
    """A line of the guide's table: what was found in `model`, once all of the test held for it."""
    encoder, modules = find_encoder(model), outermost_modules(model)
    parts = [type(modules[name]).__name__ for name in (encoder.embeddings, encoder.blocks[0])]
    wrapped = ", ".join(f"`{part}`" for part in [*parts, *filter(None, [encoder.between])])
    return f"| `{model.config.model_type}` | {wrapped} | yes | {'cls' if class_token else 'mean'} | equal | all |\n"


def test_the_guide_has_a_row_for_each_architecture_and_no_other() -> None:
    rows = [line for line in GUIDE.splitlines() if line.endswith("| equal | all |")]
    assert len(rows) == len(ENCODERS) + 1 == len(ARCHITECTURES)  # timm's is tested in tests/tuners/test_timm.py
    assert all(sum(f"`{entry.embeddings}`, `{entry.block}`" in line for line in rows) == 1 for entry in ARCHITECTURES)


@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_of_a_model_of_images_and_text_the_part_for_images_is_loaded(family: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{family}Config")(text_config=TEXT, vision_config=tiny.SIZES)
    both = getattr(transformers, f"{family}Model")(config).eval()
    both.save_pretrained(tmp_path)
    images = torch.rand(1, 3, tiny.IMAGE, tiny.IMAGE, generator=torch.Generator().manual_seed(0))
    expected = both.vision_model(images).last_hidden_state
    assert torch.equal(load_encoder(tmp_path)(images).last_hidden_state, expected)
    adopted = EncoderForImageClassification.from_encoder(both.vision_model, num_labels=2, pooling="mean")
    assert torch.equal(adopted.encode(images).layers[0], expected)
    assert not [name for name, _ in adopted.encoder.named_parameters() if "head" in name]


def test_an_encoder_that_needs_more_than_images_is_refused() -> None:
    sizes = {name: value for name, value in tiny.SIZES.items() if name != "image_size"}
    encoder = transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**sizes))
    with pytest.raises(ArchitectureError, match="needs 'pixel_attention_mask', 'spatial_shapes' beside the images"):
        EncoderForImageClassification.from_encoder(encoder, num_labels=2)
