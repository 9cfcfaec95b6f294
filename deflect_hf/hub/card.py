"""The model card of a trained model: written beside it when its run ends, and again, with its name, when it is pushed.

PEFT writes a card of headings to fill in; this one takes its place and is complete. Its text is in ``card.md.j2``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load
from transformers import PreTrainedConfig

from deflect_hf.artifacts import saved_model as checkpoints
from deflect_hf.config.readers import DatasetSpec, dataset_spec
from deflect_hf.config.run import RunArguments
from deflect_hf.config.tasks import TITLES, Task, task_of
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.errors import DeflectError
from deflect_hf.evaluation.task_metrics import evaluation_window
from deflect_hf.files import write_text
from deflect_hf.hub.sanitize import CARD, PICTURE
from deflect_hf.models.encoders import chosen_gsd
from deflect_hf.models.geovit.sources import SOURCES
from deflect_hf.spectral.bands import SPECTRUM
from deflect_hf.spectral.probe import bound_of
from deflect_hf.spectral.sensors import get_sensor

TEMPLATE = Path(__file__).with_name("card.md.j2")
# key in results.json -> type of the Hub
METRICS = {
    **{name: name for name in ("accuracy", "map", "mae", "rmse")},
    **{"miou": "mean_iou", "f1_macro": "f1", "r2": "r_squared"},
}
METHODS = {
    "deflect": "DEFLECT",
    "lora": "LoRA",
    "slr": "scaled low-rank adapters (SLR)",
    "bitfit": "BitFit",
    "norm": "norm tuning",
    "frozen": "a frozen encoder under a trained head",
    "full": "full fine-tuning",
}
MARKUP = re.compile(r"([\\`*_<\[])")  # what Markdown would take for more than text
EXAMPLE_VALUE = {"reflectance": 0.1, "8bit": 0.5}


@dataclass(frozen=True)
class Metadata:
    """What is known of a trained model.

    Attributes:
        task, adapter: entries of ``config.json`` and ``adapter_config.json``, where there is one.
        results: entries of ``results.json``.
        files: size of each file in bytes.
        license: of the base model; None where it is not known.
    """

    config: RunArguments
    task: Mapping[str, Any]
    adapter: Mapping[str, Any]
    processor: MultispectralImageProcessor
    results: Mapping[str, Any]
    files: Mapping[str, int]
    license: str | None

    @property
    def classes(self) -> list[str]:
        """The classes in label order, each in one line and without what would end a code span."""
        found = self.task.get("id2label") or PreTrainedConfig().id2label  # its default is not written
        names = [found[key] for key in sorted(found, key=int)]
        return [" ".join(name.split()).replace("`", "'") for name in names]

    @property
    def kind(self) -> Task:
        """What it was trained for."""
        return task_of(self.task["model_type"], self.task.get("problem_type"))

    @property
    def encoder_bands(self) -> list[str]:
        """Bands that the encoder sees: its base bands, and those that a trained patch embedding takes besides."""
        base = self.adapter.get("base_bands") or self.task.get("base_bands") or self.config.encoder.base_bands
        return [*base, *(self.task.get("extra_bands") or [])]

    @property
    def split(self) -> str | None:
        """The split whose scores are told."""
        return next((name for name in ("test", "val") if name in self.results), None)

    @property
    def data(self) -> DatasetSpec:
        """The training data; a public data set has a source, a license and a citation, too."""
        return dataset_spec(self.config.dataset.name)

    @property
    def environment(self) -> Mapping[str, Any]:
        """Device, processes and packages of the training, where they are known."""
        return self.results.get("environment", {})

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of an image that the model takes as it is, before it is resized if training did that."""
        crop, window = self.config.augmentation.center_crop, evaluation_window(self.config, self.kind.name)
        if self.processor.size is None:  # else crop and window are those of resized images
            if crop is not None:
                return crop[0], crop[1]
            if window is not None:
                return window, window
        size = self.processor.trained_size or self.task["encoder_config"]["image_size"]
        return (size, size) if isinstance(size, int) else (size[0], size[1])


def read_metadata(folder: Path, license: str | None = None) -> Metadata:
    """What a result folder says that is safe to read: made here, or checked."""
    config = checkpoints.read_config(folder)

    def stored(name: str) -> dict[str, Any]:
        path = folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def scored(entry: Any) -> bool:  # `Predictor.save` keeps of a split what maps need, no scores
        return not isinstance(entry, Mapping) or not {*entry} <= {"confusion_matrix", "temperature"}

    return Metadata(
        config=config,
        task=stored("config.json"),
        adapter=stored("adapter_config.json"),
        processor=MultispectralImageProcessor.from_pretrained(folder),
        results={key: entry for key, entry in stored(checkpoints.RESULTS).items() if scored(entry)},
        files={
            path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()
        },
        license=license or known_license(config.encoder.name_or_path),
    )


def known_license(encoder: str | None) -> str | None:
    """The license of a published encoder by its name on the Hub, or as the card in its folder states it."""
    if encoder is None:
        return None
    card = Path(encoder) / "README.md"
    if not card.is_file():
        return next((source.license for source in SOURCES.values() if source.hub_id == encoder), None)
    try:
        stated = (metadata_load(card) or {}).get("license")
    except (ValueError, yaml.YAMLError):  # somebody's text, no card
        return None
    return stated if isinstance(stated, str) else None


def write_card(
    folder: Path, *, repo_id: str | None = None, revision: str | None = None, license: str | None = None
) -> Path:
    """Write README.md into a result folder, whole or not at all; returns its path.

    Args:
        repo_id, revision: its name and branch on the Hub, for the program that loads it; None: the folder.
        license: of the base model, where the Hub stated it.

    Raises:
        CheckpointError: the folder is no trained model.
    """
    meta = read_metadata(folder, license)
    name = repo_id or str(folder)
    where = repr(name) if revision is None else f"{name!r}, revision={revision!r}"
    title = name.rpartition("/")[2] + ("" if revision is None else f", {revision}")
    scores, encoder = meta.results.get(meta.split or ""), meta.config.encoder
    formulas, bounds = meta.adapter.get("formulas") or {}, meta.adapter.get("index_bounds") or {}
    values: dict[str, Any] = {
        **{"meta": meta, "processor": meta.processor, "encoder": encoder, "scores": scores},
        **{"where": where, "title": title, "finetune": meta.config.finetune, "full": meta.config.finetune == "full"},
        "method": METHODS.get(meta.config.finetune, meta.config.finetune),
        "picture": PICTURE if PICTURE in meta.files else None,
        "intervals": scores.get("intervals") if scores else None,
        "on_the_hub": "/" in str(encoder.name_or_path) and not Path(str(encoder.name_or_path)).is_dir(),
        "bands": band_rows(meta),
        "indices": [(name, f"`{text}`", f"±{bounds.get(name, bound_of(text)):g}") for name, text in formulas.items()],
        "cost": cost_rows(meta),
        "versions": ", ".join(
            f"{name} {number}" for name, number in meta.environment.get("packages", {}).items() if number
        ),
        **program(meta),
        **(score_rows(scores) if scores else {}),
    }
    card = ModelCard.from_template(card_data(meta, repo_id), template_path=str(TEMPLATE), **values)
    path = folder / CARD
    write_text(path, f"{card.content.rstrip()}\n")
    return path


def card_data(meta: Metadata, repo_id: str | None) -> ModelCardData:
    """What the Hub reads of the card: library, base model, task, license, scores."""
    finetune = str(meta.config.finetune)
    fields: dict[str, Any] = {
        "library_name": "peft" if meta.adapter else "transformers" if finetune == "full" else "deflect_hf",
        "tags": sorted({finetune.replace(":", "-"), "deflect_hf", "geospatial", "multispectral"}),
    }
    if meta.kind.pipeline is not None:
        fields["pipeline_tag"] = meta.kind.pipeline
    base = meta.config.encoder.name_or_path
    if base is not None and repo_id is not None and "/" in base:
        fields |= {"base_model": base, "base_model_relation": "adapter" if meta.adapter else "finetune"}
    if meta.license is not None:
        fields["license"] = meta.license
    if meta.split is not None:
        fields["model_name"] = (repo_id or finetune).rpartition("/")[2]
        found = meta.results[meta.split]
        scores = {key: value for key, value in found.items() if key in meta.kind.scores and value is not None}
        fields["metrics"] = [METRICS[key] for key in scores]
        fields["eval_results"] = [
            EvalResult(
                task_type=meta.kind.pipeline or meta.kind.name,
                dataset_type=meta.config.dataset.name,
                dataset_name=meta.data.title,
                dataset_split="test" if meta.split == "test" else "validation",
                metric_type=METRICS[key],
                metric_name=TITLES[key],
                metric_value=round(value, 4),
            )
            for key, value in scores.items()
        ]
    return ModelCardData(**fields)


def program(meta: Metadata) -> dict[str, Any]:
    """What the programs on the card differ in."""
    processor, encoder = meta.processor, meta.config.encoder
    stored = list(processor.source_bands or processor.bands)
    scale, offset = (value if isinstance(value, float) else value[0] for value in (processor.scale, processor.offset))
    size: tuple[int, ...] = ()  # of what comes out for each pixel of such an image
    if meta.kind.dense:
        size = meta.image_size if processor.size is None else (processor.size["height"], processor.size["width"])
    plain = None  # where the encoder is not what `AutoModel.from_pretrained` gives
    if encoder.random is None and encoder.quantization is None and chosen_gsd(encoder, gsd_m=None) is None:
        plain = repr(encoder.name_or_path) + (f", revision={encoder.revision!r}" if encoder.revision else "")
    every = meta.adapter.get("bands") or meta.task.get("extra_bands")
    return {
        "stored_bands": stored,
        "shape": (1, len(stored), *meta.image_size),
        "value": (EXAMPLE_VALUE[processor.unit] - offset) / scale,
        "output_shape": (1, len(meta.classes), *size),
        "plain_encoder": plain,
        "model_class": "EncoderForSemanticSegmentation" if meta.kind.dense else "EncoderForImageClassification",
        "seen": f"{len(processor.bands)} bands" if every else "the bands of its encoder",
    }


def band_rows(meta: Metadata) -> list[tuple[str, ...]]:
    """What the images have to hold: code, name, wavelength, who reads it, whether it is needed."""
    ranges = {code: (name, f"{low:g} to {high:g}") for code, name, low, high, _ in SPECTRUM}
    centers: dict[str, float | None] = {}
    if meta.config.dataset.sensor is not None:
        try:
            centers = {band.code: band.wavelength_nm for band in get_sensor(meta.config.dataset.sensor).bands}
        except DeflectError:
            centers = {}
    rows: list[tuple[str, ...]] = []
    for code in meta.processor.bands:
        name, span = ranges.get(code, (code, code.removeprefix("W")))
        span = f"{centers[code]:g}" if centers.get(code) else span
        roles = ["encoder"] if code in meta.encoder_bands else []
        roles += ["radiometry"] if meta.adapter.get("bands") else []
        needed = "yes" if code in meta.processor.needed_bands else "may be missing (NaN)"
        rows.append((f"`{code}`", name, span, " and ".join(roles) or "not used", needed))
    return rows


def score_rows(scores: dict[str, Any]) -> dict[str, Any]:
    """The rows of the tables of scores, with their intervals."""
    intervals = scores.get("intervals") or {}
    rows = scores.get("per_class", {})
    columns = [key for key in next(iter(rows.values()), {}) if key in TITLES]
    return {
        "means": [(TITLES[key], with_interval(scores[key], intervals.get(key))) for key in TITLES if key in scores],
        "columns": [TITLES[key] for key in columns],
        "per_class": [
            (
                MARKUP.sub(r"\\\1", " ".join(name.split())),
                *(with_interval(row[key], (intervals.get(key) or {}).get(name)) for key in columns),
                f"{row['support']:,}",
            )
            for name, row in rows.items()
        ],
    }


def with_interval(value: float | None, interval: Sequence[float | None] | None = None) -> str:
    """``0.812 [0.790, 0.834]``."""
    if value is None:
        return "-"
    if interval is None or None in interval:
        return f"{value:.3f}"
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def cost_rows(meta: Metadata) -> list[tuple[str, str]]:
    """Parameters, file size and time."""
    results, rows = meta.results, []
    counts = results.get("parameters")
    if counts:
        share = f"{counts['encoder_trainable_percent']:.3g} %"
        rows.append(("trained parameters of the encoder", f"{counts['encoder_trainable']:,} ({share})"))
        rows.append(("trained parameters of the head", f"{counts['head_trainable']:,}"))
    weights = {name: size for name, size in meta.files.items() if name.endswith(".safetensors")}
    rows += [(f"`{name}`", f"{size / 1000:,.0f} kB") for name, size in sorted(weights.items())]
    if results.get("steps"):
        each = 1000 * results["seconds"] / results["steps"]
        device, processes = meta.environment.get("device", "an unknown device"), meta.environment.get("processes", 1)
        images = meta.config.batch_size * meta.config.accumulate * processes
        device += f", {processes} processes" if processes > 1 else ""
        steps = f"{results['steps']:,} steps of {images} images, {each:,.0f} ms each"
        rows.append(("training", f"{steps} with reading and validation, on {device}"))
    return rows
