"""Each geospatial encoder at its published size: parameters, DEFLECT's share, forward and training time.

The weights are random (time and counts do not depend on them), the adapter is DEFLECT's default on twelve bands. The
three times of an encoder are measured in turns, for one image; medians are printed.
"""

import logging
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from peft import get_peft_model

from deflect_hf.benchmark.cost import BANDS
from deflect_hf.benchmark.flags import flag_parser, markdown, report
from deflect_hf.errors import ConfigError
from deflect_hf.models.configuration import as_pair
from deflect_hf.models.geovit import GeoViTConfig, GeoViTModel
from deflect_hf.models.geovit.sources import SOURCES, Source, get_source
from deflect_hf.tuners.deflect import DeflectConfig
from tests.benchmarks import in_turns, refuse_less

logger = logging.getLogger(__name__)

COLUMNS = "encoder | parameters | trained | share | frozen forward, ms | deflected / frozen | training step, ms"


def main(argv: Sequence[str]) -> None:
    """Measure the encoders and print a Markdown table; the numbers go to `encoders.json`.

    Raises:
        ConfigError: an encoder is unknown or has other patches, or a number makes no sense.
    """
    parser = flag_parser("encoders", __doc__)
    parser.add_argument("--encoders", nargs="+", default=list(SOURCES), help="names as in the conversion")
    parser.add_argument("--image_size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each time")
    own = parser.parse_args(argv)
    refuse_less(own, {"image_size": 1, "rounds": 1})
    sources = [get_source(name) for name in own.encoders]
    for source in sources:
        patch = GeoViTConfig(**source.config).patch_size
        if any(own.image_size % side for side in as_pair(patch)):
            raise ConfigError(
                f"--image_size {own.image_size}: {source.name} has patches of {patch} pixels; give a multiple."
            )
    measured = []
    for source in sources:
        measured.append(measure(source, own.image_size, own.rounds))
        logger.info("%s", measured[-1])
    rows = [
        (
            one["encoder"],
            f"{one['total']:,}",
            f"{one['trainable']:,}",
            f"{100 * one['trainable'] / one['total']:.3f} %",
            f"{one['frozen_ms']:.0f}",
            f"{one['deflected_ms'] / one['frozen_ms']:.2f}",
            f"{one['training_ms']:.0f}",
        )
        for one in measured
    ]
    note = f"{own.image_size} px, {len(BANDS)} bands, batch 1, float32, {torch.get_num_threads()} thread(s)"
    report(own.output, "encoders", measured, markdown(COLUMNS, rows, f"{note}, median of {own.rounds}."))


def measure(source: Source, image_size: int, rounds: int) -> dict[str, Any]:
    """Build one encoder of full size, adapt it, and time it against itself with the adapter disabled."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    encoder = GeoViTModel(GeoViTConfig(**source.config)).to(device)
    total = sum(parameter.numel() for parameter in encoder.parameters())
    adapter = DeflectConfig(
        bands=list(BANDS),
        base_bands=list(source.base_bands),
        base_mean=[0.1] * len(source.base_bands),
        base_std=[0.1] * len(source.base_bands),
    )
    model = get_peft_model(encoder, adapter)
    pixels = torch.rand(1, len(BANDS), image_size, image_size, device=device) * 0.4

    def training() -> None:
        model.train()
        model(pixels).last_hidden_state.square().mean().backward()
        model.zero_grad(set_to_none=True)

    @torch.no_grad()
    def deflected() -> None:
        model.eval()
        model(pixels)

    def frozen() -> None:
        with model.disable_adapter():
            deflected()

    times = in_turns(rounds, {"frozen_ms": frozen, "deflected_ms": deflected, "training_ms": training})
    medians = {name: 1e3 * statistics.median(seconds) for name, seconds in times.items()}
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {"encoder": source.name, "total": total, "trainable": trainable, **medians}
