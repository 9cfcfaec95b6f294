"""DEFLECT on timm's VisionTransformer: the one of timm where it can be imported, and a copy of it everywhere."""

import copy
import pickle
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import deflect_hf
from deflect_hf.errors import ArchitectureError, UnsupportedOperationError
from tests.tuners import timm_vit
from tests.tuners.tiny import base_pixels, make_encoder, randomise, spectral_config

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}
BUILDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "eager": {"fused_attn": False},
    "norms": {"qk_norm": True, "pre_norm": True},
    "registers, any size": {"reg_tokens": 2, "dynamic_img_size": True},
}


@pytest.fixture(params=["copy", "timm"])
def library(request: pytest.FixtureRequest) -> type[nn.Module]:
    if request.param == "copy":
        return timm_vit.VisionTransformer
    module = pytest.importorskip("timm.models.vision_transformer", reason="timm is not here", exc_type=ImportError)
    return module.VisionTransformer


def make(library: type[nn.Module], build: str = "plain") -> nn.Module:
    options = dict(BUILDS[build])
    fused = options.pop("fused_attn", True)
    torch.manual_seed(0)
    model = library(**SIZES, init_values=0.5, **options).eval()
    for block in model.blocks:
        block.attn.fused_attn = fused
    return model


@pytest.mark.parametrize("build", list(BUILDS))
def test_it_starts_as_the_frozen_model_learns_and_goes_again(library, build, reflectance):
    base = make(library, build)
    frozen = base(base_pixels(reflectance))
    assert torch.equal(copy.deepcopy(base)(base_pixels(reflectance)), frozen)
    names = set(vars(base))
    model = get_peft_model(base, spectral_config()).eval()
    deflect_hf.check(model, reflectance)
    assert torch.equal(model(reflectance), frozen)
    randomise(model)
    bent = model(reflectance)
    assert not torch.allclose(bent, frozen, atol=1e-3)
    model.train()
    torch.testing.assert_close(model(reflectance), bent)  # by the way that keeps autograd state
    model.eval()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        randomise(model, seed=1)  # the twin must not run layers of the first
        assert torch.equal(twin(reflectance), bent)
        randomise(model, scale=-0.3, seed=1)
    with model.disable_adapter():
        assert torch.equal(model(reflectance), frozen)
    restored = model.unload()
    assert torch.equal(restored(base_pixels(reflectance)), frozen) and set(vars(restored)) == names


def test_it_gives_what_the_same_weights_give_in_transformers(library, reflectance):
    timm_model = make(library).requires_grad_(False)
    # transformers' ViT has no LayerScale
    for block in timm_model.blocks:
        block.ls1.gamma.fill_(1.0)
        block.ls2.gamma.fill_(1.0)
    vit = make_encoder("vit", layer_norm_eps=timm_model.norm.eps, intermediate_size=128)
    vit.load_state_dict(as_transformers(timm_model.state_dict()), strict=False)
    for one in (timm_model, vit):
        torch.manual_seed(0)
        randomise(get_peft_model(one, spectral_config()))
    ours, theirs = timm_model.forward_features(reflectance), vit(reflectance).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def as_transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's weights under the names of transformers' ViT, queries, keys and values apart."""
    embeddings = {"cls_token": "cls_token", "pos_embed": "position_embeddings"}
    renamed = {f"embeddings.{new}": state[old] for old, new in embeddings.items()}
    names = {"attn.proj": "attention.o_proj", "norm1": "layernorm_before", "norm2": "layernorm_after"}
    mlp = [name for name in state if name.startswith("blocks.0.mlp") and name.endswith("weight")]
    names |= dict(zip((name.removeprefix("blocks.0.")[:-7] for name in mlp), ("mlp.fc1", "mlp.fc2"), strict=True))
    for kind in ("weight", "bias"):
        renamed[f"embeddings.patch_embeddings.projection.{kind}"] = state[f"patch_embed.proj.{kind}"]
        renamed[f"layernorm.{kind}"] = state[f"norm.{kind}"]
        for number in range(SIZES["depth"]):
            for old, new in names.items():
                renamed[f"layers.{number}.{new}.{kind}"] = state[f"blocks.{number}.{old}.{kind}"]
            for letter, part in zip("qkv", state[f"blocks.{number}.attn.qkv.{kind}"].chunk(3), strict=True):
                renamed[f"layers.{number}.attention.{letter}_proj.{kind}"] = part
    return renamed


def test_saved_loaded_compiled_and_checkpointed(library, tmp_path, reflectance):
    model = randomise(get_peft_model(make(library), spectral_config(indices=None, layers_to_transform=[1, 2]))).eval()
    expected = model(reflectance)
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(make(library), tmp_path).eval()(reflectance), expected)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(reflectance), expected, rtol=1e-5, atol=1e-5)
    model.train()
    model(reflectance).sum().backward()
    plain = [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]
    model.zero_grad()
    blocks = model.get_base_model().blocks
    for number, block in enumerate(blocks):
        blocks[number] = Checkpointed(block)
    model(reflectance).sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters() if p.requires_grad], plain)


class Checkpointed(nn.Module):
    """A block checkpointed from outside, as timm's `set_grad_checkpointing` does."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.utils.checkpoint.checkpoint(self.block, tokens, use_reentrant=False)


def test_lora_goes_on_the_fused_layer(library):
    deflect_hf.check(get_peft_model(make(library), LoraConfig(target_modules=["qkv"])))


def test_what_does_not_fit_is_refused(library, reflectance):
    model = get_peft_model(make(library), spectral_config())
    with pytest.raises(UnsupportedOperationError, match="no attn_mask"):
        model(reflectance, attn_mask=torch.zeros(17, 17))
    gated = make(library)
    gated.blocks[0].attn.gate = nn.Linear(32, 32)
    with pytest.raises(ArchitectureError, match=r"it is not what DEFLECT takes of timm.*without gate"):
        get_peft_model(gated, spectral_config())
