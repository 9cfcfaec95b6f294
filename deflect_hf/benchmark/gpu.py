"""DEFLECT on a GPU: what must hold there as it does on the CPU, then what each method costs. Made for 8 minutes.

Each check says passed, FAILED with its reason, or left out; then `cost` is measured with 10 and with 13 bands under
autocast to bfloat16. `gpu.md` and `gpu.json` hold the checks, `cost-10/` and `cost-13/` the tables. The exit status is
1 when a check failed. The same on a CPU, tiny: --device cpu --size tiny --image_size 32 --batch_size 2 --rounds 1
There, gloo stands for NCCL, and graphs are made but not compiled; what is left out says why.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from peft import PeftModel, get_peft_model
from pydantic import Field, model_validator
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from deflect_hf.benchmark import cost
from deflect_hf.benchmark.flags import markdown, refuse_cut_patches, report
from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.data import Batch, Count, Side
from deflect_hf.config.schema import Arguments, UserPath, option
from deflect_hf.errors import ConfigError
from deflect_hf.files import refuse_used
from deflect_hf.spectral.sensors import get_sensor
from deflect_hf.tuners.check import check
from deflect_hf.tuners.deflect import DeflectConfig

S2 = tuple(band.code for band in get_sensor("sentinel2_l1c").bands)
BANDS = {10: ("B", "G", "R", "RE1", "RE2", "RE3", "N", "N2", "S1", "S2"), 13: S2}
ROWS = ("frozen", "deflect", "lora:rank=8,target=qv", "lora:rank=16,target=all-linear,patch_embed=rgb+random", "full")
STEPS = 4
ROUNDING = 1e-3  # share of the largest value by which float32 kernels may differ from each other; TF32 is off


class NotHereError(Exception):
    """What a check needs is not on this machine."""


class Bench:
    """A model of the asked size on the device, new for each call and always the same."""

    def __init__(self, own: GPUArguments) -> None:
        self.own, self.device = own, torch.device(own.device)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it to be deterministic
        generator = torch.Generator().manual_seed(0)
        shape = (own.batch_size, len(BANDS[10]), own.image_size, own.image_size)
        torch.manual_seed(0)
        self.drawn = cost.make_vit(own.size, (own.image_size, own.image_size), own.patch_size)
        self.pixels = (0.02 + 0.4 * torch.rand(shape, generator=generator)).to(self.device)

    def encoder(self, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> nn.Module:
        """A frozen encoder in evaluation mode."""
        encoder = copy.deepcopy(self.drawn)
        encoder.set_attn_implementation(attention)
        return encoder.to(self.device, dtype).eval()

    def model(self, attention: str = "sdpa", trained: bool = True, dtype: torch.dtype = torch.float32) -> PeftModel:
        """An adapted encoder in evaluation mode; `trained` moves the adapter away from its start."""
        # no base_mean: the frozen encoder is given the bands R, G, B as they are
        torch.manual_seed(0)
        model = get_peft_model(self.encoder(attention, dtype), DeflectConfig(bands=list(BANDS[10])))
        for parameter in model.parameters() if trained else ():
            if parameter.requires_grad:
                parameter.data.add_(0.1 * torch.randn(parameter.shape).to(parameter))
        return model.to(self.device).eval()

    def gradients(self, model: nn.Module) -> list[torch.Tensor]:
        """Of a training step, whole where they are sharded."""
        model.train()
        tokens = model(self.pixels).last_hidden_state
        (tokens * torch.linspace(-1, 1, tokens.shape[-1], device=self.device)).mean().backward()
        grads: list[Any] = [p.grad for p in model.parameters() if p.requires_grad]
        return [grad.full_tensor() if hasattr(grad, "full_tensor") else grad for grad in grads]

    def train(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        """Some steps on the one batch."""
        for _ in range(steps):
            self.gradients(model)
            optimizer.step()
            optimizer.zero_grad()


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW of what is trained."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)


def same(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], exact: bool = False) -> None:
    """Raise an AssertionError unless the tensors are equal: bit for bit, or up to the rounding of float32."""
    for one, other in zip(found, expected, strict=True):
        scale = float(other.detach().abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=0 if exact else ROUNDING * scale)


def frozen(attention: str, dtype: torch.dtype, backend: SDPBackend | None = None) -> Callable[[Bench], None]:
    """The check that an adapted model starts as the frozen one, that all of it can learn, and that it can be disabled.

    Bit for bit; what is compared with in the end is an encoder that never was adapted.
    """

    def run(bench: Bench) -> None:
        if backend is not None and bench.device.type != "cuda":
            raise NotHereError("the flash kernel is asked for on CUDA alone")
        if attention == "flash_attention_2" and not importlib.util.find_spec("flash_attn"):
            raise NotHereError("the package flash_attn is not installed")
        pixels = bench.pixels.to(dtype)
        with sdpa_kernel(backend) if backend is not None else contextlib.nullcontext():
            check(bench.model(attention, trained=False, dtype=dtype), pixels)
            model, plain = bench.model(attention, dtype=dtype), bench.encoder(attention, dtype)
            rgb = pixels[:, [BANDS[10].index(band) for band in "RGB"]]
            with torch.no_grad(), model.disable_adapter():
                same([model(pixels).last_hidden_state], [plain(rgb).last_hidden_state], exact=True)

    return run


def autocast(bench: Bench) -> None:
    """Under autocast to bfloat16, the fresh adapter gives the bits of the frozen model."""
    with torch.autocast(bench.device.type, torch.bfloat16):
        check(bench.model(trained=False), bench.pixels)


def kernels(bench: Bench) -> None:
    """Trained adapters give the same with eager and sdpa."""
    same(bench.gradients(bench.model("eager")), bench.gradients(bench.model("sdpa")))


def compiled(bench: Bench) -> None:
    """torch.compile takes the whole model as one graph, and gives its gradients."""
    model = bench.model()
    model.compile(fullgraph=True, backend="inductor" if bench.device.type == "cuda" else "aot_eager")
    same(bench.gradients(model), bench.gradients(bench.model()))


def checkpointed(bench: Bench) -> None:
    """Gradient checkpointing gives the gradients of the plain run, re-entrant and not."""
    plain = bench.gradients(bench.model())
    for reentrant in (False, True):
        model = bench.model()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        same(bench.gradients(model), plain)


def repeated(bench: Bench) -> None:
    """Two trainings from one seed end in the same bits."""
    models = [bench.model() for _ in range(2)]
    for model in models:
        bench.train(model, optimizer_of(model), STEPS)
    same(list(models[0].parameters()), list(models[1].parameters()), exact=True)


def resumed(bench: Bench) -> None:
    """A training that is saved halfway and loaded into new objects ends in the bits of one that is not."""
    whole, first, second = (bench.model() for _ in range(3))
    bench.train(whole, optimizer_of(whole), STEPS)
    begun = optimizer_of(first)
    bench.train(first, begun, STEPS // 2)
    file = io.BytesIO()
    torch.save([first.state_dict(), begun.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, map_location=bench.device)
    second.load_state_dict(weights)
    continued = optimizer_of(second)
    continued.load_state_dict(state)
    bench.train(second, continued, STEPS - STEPS // 2)
    same(list(second.parameters()), list(whole.parameters()), exact=True)


def distributed(bench: Bench) -> None:
    """DDP and FSDP2 on one rank (NCCL on CUDA) give the gradients of the plain run."""
    from torch.distributed.fsdp import fully_shard

    plain = bench.gradients(bench.model())
    backend = "nccl" if bench.device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        same(bench.gradients(nn.parallel.DistributedDataParallel(bench.model())), plain)
        model = bench.model()
        mesh = torch.distributed.init_device_mesh(bench.device.type, (1,))
        units = model.get_base_model()._no_split_modules
        for module in [part for part in model.modules() if type(part).__name__ in units]:
            fully_shard(module, mesh=mesh)
        same(bench.gradients(fully_shard(model, mesh=mesh)), plain)
    finally:
        torch.distributed.destroy_process_group()


CHECKS: dict[str, Callable[[Bench], None]] = {
    "start and disabled, float32, sdpa": frozen("sdpa", torch.float32),
    "start and disabled, float32, eager": frozen("eager", torch.float32),
    "start and disabled, bfloat16, sdpa": frozen("sdpa", torch.bfloat16),
    "start and disabled, bfloat16, eager": frozen("eager", torch.bfloat16),
    "start and disabled, bfloat16, sdpa by flash": frozen("sdpa", torch.bfloat16, SDPBackend.FLASH_ATTENTION),
    "start and disabled, bfloat16, flash_attention_2": frozen("flash_attention_2", torch.bfloat16),
    "autocast": autocast,
    "eager equals sdpa": kernels,
    "compile": compiled,
    "gradient checkpointing": checkpointed,
    "determinism": repeated,
    "resume": resumed,
    "DDP and FSDP2, one rank": distributed,
}


class GPUArguments(Arguments):
    """Options of ``python -m deflect_hf.benchmark gpu``."""

    output: UserPath = Field(description="folder of the results (needed)")
    device: str = option("cuda", "cuda, cuda:1, cpu")
    size: Literal["tiny", "small", "base", "large"] = option("large", "size of the vision transformer")
    image_size: Side = option(224, "side of the images in pixels")
    patch_size: Side = option(16, "side of the patches in pixels")
    batch_size: Batch = option(32, "images per step; the checks take 2 of them")
    rounds: Count = option(9, "measurements of each time")
    bands: list[Literal[10, 13]] = option(list(BANDS), "how many, of `cost`")

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse_cut_patches(self.image_size, self.patch_size)
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(
                f"--device {self.device}: torch {torch.__version__} finds no GPU here; --device cpu runs it there"
            )
        return self


def main(argv: Sequence[str]) -> None:
    """Run the checks, then the measurements; stops with status 1 when a check failed."""
    own = parse_arguments(GPUArguments, __doc__ or "", argv)
    output = Path(own.output)
    refuse_used(output)
    bench = Bench(own.replace(batch_size=2))
    results = [{"check": name, **outcome(run, bench)} for name, run in CHECKS.items()]
    device = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "CPU"
    rows = [(str(one["check"]), str(one["result"]), f"{one['seconds']:.1f}") for one in results]
    note = f"{device}, torch {torch.__version__}, ViT-{own.size}."
    report(output, "gpu", results, markdown("check | result | seconds", rows, note))
    for number in own.bands:
        given = own.model_dump(exclude={"output", "bands"})
        given |= {"output": str(output / f"cost-{number}"), "bands": list(BANDS[number]), "rows": list(ROWS)}
        cost.measure(cost.CostArguments(**given, bf16=True))
    if any(str(one["result"]).startswith("FAILED") for one in results):
        raise SystemExit(1)


def outcome(run: Callable[[Bench], None], bench: Bench) -> dict[str, Any]:
    """What became of one check; an error in it is its result, so that the others run."""
    start = time.perf_counter()
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            run(bench)
        result = "passed"
    except NotHereError as reason:
        result = f"left out: {reason}"
    except Exception as error:
        result = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:
        torch.use_deterministic_algorithms(deterministic)
    return {"result": result, "seconds": time.perf_counter() - start}
