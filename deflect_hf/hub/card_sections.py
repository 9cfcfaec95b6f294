"""The sections of a model card, each from what the run left behind; Markdown, one function per section."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deflect_hf.errors import DeflectError
from deflect_hf.hub.facts import Facts
from deflect_hf.models.encoders import chosen_gsd
from deflect_hf.spectral.bands import SPECTRUM
from deflect_hf.spectral.probe import bound_of
from deflect_hf.spectral.sensors import get_sensor

MEANS = (("accuracy", "accuracy"), ("miou", "mIoU"), ("f1_macro", "macro F1"))
EXAMPLE_VALUE = {"reflectance": 0.1, "8bit": 0.5}
CITATION = """@inproceedings{thoreau2025deflect,
  title     = {Parameter-Efficient Adaptation of Geospatial Foundation Models through Embedding Deflection},
  author    = {Thoreau, Romain and Marsocci, Valerio and Derksen, Dawa},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  pages     = {9594--9604},
  year      = {2025}
}"""


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def summary(facts: Facts) -> str:
    """What the model does, in one paragraph."""
    what = "each pixel of a multispectral image" if facts.is_segmentation else "a multispectral image"
    every = facts.adapter.get("bands") or facts.task.get("extra_bands")
    seen = f"{len(facts.processor.bands)} bands" if every else "the bands of its encoder"
    return (
        f"Tells which of {len(facts.classes)} classes {what} shows "
        f"({', '.join(f'`{name}`' for name in facts.classes)}), from {seen}. Trained with {facts.method} by "
        "`deflect_hf`."
    )


def use(facts: Facts) -> str:
    """A program that runs as it stands."""
    processor = facts.processor
    bands = list(processor.source_bands or processor.bands)
    where = repr(facts.name) if facts.branch is None else f"{facts.name!r}, revision={facts.branch!r}"
    height, width = facts.image_size
    scale, offset = (value if isinstance(value, float) else value[0] for value in (processor.scale, processor.offset))
    stored = (EXAMPLE_VALUE[processor.unit] - offset) / scale
    shape = f"(1, {len(bands)}, {height}, {width})"
    rows, columns = facts.map_size
    result = f"(1, {len(facts.classes)}" + (f", {rows}, {columns})" if facts.is_segmentation else ")")
    shares = "probabilities[0].flatten(1).mean(1)" if facts.is_segmentation else "probabilities[0]"
    program = f"""import deflect_hf
import numpy as np

predict = deflect_hf.load_adapter({where})
images = np.full({shape}, {stored:g}, dtype="float32")  # your images: stored values, (batch, bands, height, width)
probabilities = predict(images, source_bands={bands})  # {result}
print(dict(zip(predict.classes, {shares}.tolist())))
"""
    program = f"```python\n{program}```"
    return f"{program}\n\n{with_peft(facts, where)}" if facts.adapter else program


def with_peft(facts: Facts, where: str) -> str:
    """The same model with PEFT alone; ``where`` are the arguments that name the repository."""
    encoder = facts.config.encoder
    told = "The model of PEFT is `predict.model`."
    if encoder.random is not None or chosen_gsd(encoder, gsd_m=None) is not None:
        return told  # the encoder is not what `AutoModel.from_pretrained` gives
    kind = "EncoderForSemanticSegmentation" if facts.is_segmentation else "EncoderForImageClassification"
    source = repr(encoder.name_or_path) + (f", revision={encoder.revision!r}" if encoder.revision else "")
    return f"""{told} With PEFT alone, the adapter belongs to the encoder with its head, not to the bare encoder:

```python
import deflect_hf
from peft import PeftModel
from transformers import AutoModel

config = deflect_hf.{kind}.config_class.from_pretrained({where})
base = deflect_hf.{kind}(config, AutoModel.from_pretrained({source}))
model = PeftModel.from_pretrained(base, {where})
```"""


def bands(facts: Facts) -> str:
    """What the images have to hold."""
    processor = facts.processor
    ranges = {code: (name, f"{low:g} to {high:g}") for code, name, low, high, _ in SPECTRUM}
    centres: dict[str, float | None] = {}
    if facts.config.dataset.sensor is not None:
        try:
            centres = {band.code: band.wavelength_nm for band in get_sensor(facts.config.dataset.sensor).bands}
        except DeflectError:
            centres = {}
    rows = []
    for code in processor.bands:
        name, span = ranges.get(code, (code, code.removeprefix("W")))
        span = f"{centres[code]:g}" if centres.get(code) else span
        roles = ["encoder"] if code in facts.encoder_bands else []
        roles += ["radiometry"] if facts.adapter.get("bands") else []
        needed = "yes" if code in processor.needed_bands else "may be missing (NaN)"
        rows.append((f"`{code}`", name, span, " and ".join(roles) or "not used", needed))
    unit = "reflectance, 1.0 = 100 %" if processor.unit == "reflectance" else "stretched 8-bit values, 0 to 1"
    told = f"Unit inside: {unit}. The training images were stored so that it is `value * {processor.scale} + "
    told += f"{processor.offset}`"
    told += f", at {processor.gsd_m:g} m per pixel" if processor.gsd_m else ""
    told += f", on a `{processor.projection}` grid." if processor.projection else "."
    heading = ("code", "band", "wavelength, nm", "read by", "needed")
    return f"{table(heading, rows)}\n\n{told} NaN marks what was not measured."


def indices(facts: Facts) -> str:
    """The spectral indices with their formulas; empty without any."""
    formulas: Mapping[str, str] = facts.adapter.get("formulas") or {}
    if not formulas:
        return ""
    bounds: Mapping[str, float] = facts.adapter.get("index_bounds") or {}
    rows = [(name, f"`{text}`", f"±{bounds.get(name, bound_of(text)):g}") for name, text in formulas.items()]
    return table(("index", "formula over reflectance", "limited to"), rows)


def training_data(facts: Facts) -> str:
    """What it was trained on."""
    counts = facts.results.get("images") or {}
    told = f"{facts.data[0].upper()}{facts.data[1:]}"
    if facts.public is not None:
        told += f" ({facts.public.source}; licence: {facts.public.license}). {facts.public.citation}"
    told = told.rstrip(".") + "."
    if counts:
        told += f" Images: {', '.join(f'{count:,} {split}' for split, count in counts.items())}."
    share = facts.config.dataset.limited_label
    return told + (f" {share:.0%} of the labels were used." if share < 1 else "")


def scores(facts: Facts) -> str:
    """The last scores with their intervals: of the test split, failing that of the validation split."""
    split = next((name for name in ("test", "val") if name in facts.results), None)
    if split is None:
        return "This checkpoint was not evaluated."
    result = facts.results[split]
    intervals = result.get("intervals") or {}
    rows = [(name, with_interval(result[key], intervals.get(key))) for key, name in MEANS]
    means = "over all classes" if result["convention"] == "pangaea" else "over the classes that occur"
    told = f"On the {'test' if split == 'test' else 'validation'} split, means {means}."
    if intervals:
        told += (
            f" In brackets: {intervals['level']:.0%} intervals of {intervals['replicates']:,} bootstrap replicates "
            f"over {intervals['images']:,} images, of one training run: they say nothing of other places or seeds."
        )
    unit = "pixels" if facts.is_segmentation else "images"
    per_class = [
        (
            name,
            with_interval(row["iou"], (intervals.get("iou") or {}).get(name)),
            *(with_interval(row[key]) for key in ("f1", "precision", "recall")),
            f"{row['support']:,}",
        )
        for name, row in result["per_class"].items()
    ]
    header = ("class", "IoU", "F1", "precision", "recall", unit)
    return f"{told}\n\n{table(('score', 'value'), rows)}\n\n{table(header, per_class)}"


def with_interval(value: float | None, interval: Sequence[float | None] | None = None) -> str:
    """``0.812 [0.790, 0.834]``."""
    if value is None:
        return "-"
    if interval is None or None in interval:
        return f"{value:.3f}"
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def cost(facts: Facts) -> str:
    """Parameters, file size and time."""
    results, rows = facts.results, []
    counts = results.get("parameters")
    if counts:
        share = f"{counts['encoder_trainable_percent']:.3g} %"
        rows += [
            ("trained parameters of the encoder", f"{counts['encoder_trainable']:,} ({share})"),
            ("trained parameters of the head", f"{counts['head_trainable']:,}"),
        ]
    weights = {name: size for name, size in facts.files.items() if name.endswith(".safetensors")}
    rows += [(f"`{name}`", f"{size / 1000:,.0f} kB") for name, size in sorted(weights.items())]
    if results.get("steps"):
        each = 1000 * results["seconds"] / results["steps"]
        where = results.get("environment", {})
        device, processes = where.get("device", "an unknown device"), where.get("processes", 1)
        images = facts.config.batch_size * facts.config.accumulate * processes
        device += f", {processes} processes" if processes > 1 else ""
        told = f"{results['steps']:,} steps of {images} images, {each:,.0f} ms each"
        rows.append(("training", f"{told} with reading and validation, on {device}"))
    return table(("", ""), rows)


def limits(facts: Facts) -> str:
    """What it must not be trusted with."""
    lines = [
        f"- It knows {facts.data} and nothing else: other sensors, places, seasons and processing levels are untested.",
        "- Values must be in the unit above: digital numbers given as reflectance are refused, other mistakes are not "
        "always noticed.",
        "- It always names one of its classes, also where an image shows something else.",
    ]
    if facts.adapter.get("bands") and not facts.adapter.get("band_dropout"):
        lines.append("- Every band is needed; it was not trained to do without one.")
    if facts.config.encoder.random is not None:
        lines.append("- The encoder was drawn at random, as a demonstration: it was never pretrained.")
    return "\n".join(lines)


def versions(results: Mapping[str, Any]) -> str:
    """The packages of the training run."""
    packages = results.get("environment", {}).get("packages", {})
    return ", ".join(f"{name} {number}" for name, number in packages.items() if number)
