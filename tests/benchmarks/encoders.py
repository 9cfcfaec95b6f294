"""Each geospatial encoder at its published size: parameters, DEFLECT's share, forward and training time.

The weights are random (time and counts do not depend on them), the adapter is DEFLECT's default on twelve bands. The
three times of an encoder are measured in turns; medians are printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import statistics
from collections.abc import Sequence

import torch
from peft import get_peft_model

from deflect_hf.benchmark.cost import BANDS
from deflect_hf.benchmark.flags import flag_parser, refuse_less, report
from deflect_hf.benchmark.meters import timed
from deflect_hf.errors import ConfigError
from deflect_hf.models.configuration import as_pair
from deflect_hf.models.geovit import GeoViTConfig, GeoViTModel
from deflect_hf.models.geovit.sources import SOURCES, Source, get_source
from deflect_hf.tuners.deflect import DeflectConfig

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Measured:
    """One encoder; milliseconds are medians for one batch."""

    encoder: str
    total: int
    trainable: int
    frozen_ms: float
    deflected_ms: float
    training_ms: float


def main(argv: Sequence[str]) -> None:
    """Measure the encoders and print a Markdown table; the numbers go to `encoders.json`."""
    own = parse(argv)
    sources = [get_source(name) for name in own.encoders]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measured = []
    for source in sources:
        measured.append(measure(source, own, device))
        logger.info("%s", measured[-1])
    report(own.output, "encoders", [dataclasses.asdict(one) for one in measured], as_markdown(measured, own, device))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags.

    Raises:
        ConfigError: an encoder is unknown or has other patches, or a number makes no sense.
    """
    parser = flag_parser("encoders", __doc__)
    parser.add_argument("--encoders", nargs="+", default=list(SOURCES), help="names as in the conversion")
    parser.add_argument("--image_size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--batch_size", type=int, default=1, help="images per batch")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each time")
    own = parser.parse_args(argv)
    refuse_less(own, {"image_size": 1, "batch_size": 1, "rounds": 1})
    for name in own.encoders:
        patch = GeoViTConfig(**get_source(name).config).patch_size
        if any(own.image_size % side for side in as_pair(patch)):
            raise ConfigError(f"--image_size {own.image_size}: {name} has patches of {patch} pixels; give a multiple.")
    return own


def measure(source: Source, own: argparse.Namespace, device: torch.device) -> Measured:
    """Build one encoder of full size, adapt it, and time it against itself with the adapter disabled."""
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
    pixels = torch.rand(own.batch_size, len(BANDS), own.image_size, own.image_size, device=device) * 0.4

    def train() -> None:
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

    calls = (frozen, deflected, train)
    times = [[timed(call, pixels.is_cuda) for call in calls] for _ in range(own.rounds + 1)][1:]  # the first warms up
    medians = [1e3 * statistics.median(column) for column in zip(*times, strict=True)]
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Measured(source.name, total, trainable, *medians)


def as_markdown(measured: Sequence[Measured], own: argparse.Namespace, device: torch.device) -> str:
    """One line per encoder."""
    lines = [
        "| encoder | parameters | trained | share | frozen forward, ms | deflected / frozen | training step, ms |",
        "|" + "---|" * 7,
    ]
    for one in measured:
        lines.append(
            f"| {one.encoder} | {one.total:,} | {one.trainable:,} | {100 * one.trainable / one.total:.3f} % "
            f"| {one.frozen_ms:.0f} | {one.deflected_ms / one.frozen_ms:.2f} | {one.training_ms:.0f} |"
        )
    lines.append(
        f"\n{own.image_size} px, {len(BANDS)} bands, batch {own.batch_size}, float32, {device.type}, "
        f"{torch.get_num_threads()} thread(s), median of {own.rounds}."
    )
    return "\n".join(lines) + "\n"
