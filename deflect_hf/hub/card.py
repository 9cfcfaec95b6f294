"""The model card of a trained model: written beside it when its run ends, and again, with its name, when it is pushed.

PEFT writes a card of headings to fill in; this one takes its place and is complete.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from deflect_hf.files import write_text
from deflect_hf.hub import card_sections as sections
from deflect_hf.hub.facts import Facts, read_facts
from deflect_hf.hub.scrub import CARD, ENCODER, PICTURE

HUB = "https://huggingface.co"
# type of the Hub, name, key in results.json
METRICS = (("accuracy", "accuracy", "accuracy"), ("mean_iou", "mIoU", "miou"), ("f1", "macro F1", "f1_macro"))


def write_card(
    folder: Path, *, repo_id: str | None = None, revision: str | None = None, licence: str | None = None
) -> Path:
    """Write README.md into a result folder, whole or not at all; returns its path.

    Args:
        repo_id, revision: its name and branch on the Hub, for the program that loads it; None: the folder.
        licence: of the base model, where the Hub has told it.

    Raises:
        CheckpointError: the folder is no trained model.
    """
    facts = read_facts(folder, repo_id or str(folder), revision, licence)
    path = folder / CARD
    write_text(path, f"---\n{metadata(facts, repo_id).to_yaml()}\n---\n\n{text(facts)}")
    return path


def metadata(facts: Facts, repo_id: str | None) -> ModelCardData:
    """What the Hub reads of the card: library, base model, task, licence, scores."""
    task = "image-segmentation" if facts.is_segmentation else "image-classification"
    fields: dict[str, Any] = {
        "library_name": "peft"
        if facts.adapter
        else "transformers"
        if facts.config.finetune == "full"
        else "deflect_hf",
        "pipeline_tag": task,
        "tags": sorted({facts.config.finetune.replace(":", "-"), "deflect_hf", "geospatial", "multispectral"}),
    }
    base = facts.config.encoder.name_or_path
    if base is not None and repo_id is not None and "/" in base:
        fields["base_model"] = base
        fields["base_model_relation"] = "adapter" if facts.adapter else "finetune"
    if facts.licence is not None:
        fields["license"] = facts.licence
    split = next((name for name in ("test", "val") if name in facts.results), None)
    if split is not None:
        fields["model_name"] = (repo_id or facts.config.finetune).rpartition("/")[2]
        fields["metrics"] = [kind for kind, _, _ in METRICS]
        fields["eval_results"] = [
            EvalResult(
                task_type=task,
                dataset_type=facts.config.dataset.name,
                dataset_name=facts.data,
                dataset_split="test" if split == "test" else "validation",
                metric_type=kind,
                metric_name=name,
                metric_value=round(facts.results[split][key], 4),
            )
            for kind, name, key in METRICS
        ]
    return ModelCardData(**fields)


def text(facts: Facts) -> str:
    """The card below its metadata."""
    title = (
        facts.name.rpartition("/")[2] if facts.branch is None else f"{facts.name.rpartition('/')[2]}, {facts.branch}"
    )
    picture = f"![An image, its labels and the prediction]({PICTURE})" if PICTURE in facts.files else ""
    parts = {
        f"# {title}": f"{sections.summary(facts)}\n\n{picture}".rstrip(),
        "## Use": sections.use(facts),
        "## Base model and licence": base_model(facts),
        "## Bands": sections.bands(facts),
        "## Spectral indices": sections.indices(facts),
        "## Training data": sections.training_data(facts),
        "## Scores": sections.scores(facts),
        "## Size and cost": sections.cost(facts),
        "## Limits": sections.limits(facts),
        "## Citation": f"```bibtex\n{sections.CITATION}\n```" if facts.config.finetune == "deflect" else "",
    }
    written = "\n\n".join(f"{heading}\n\n{body}" for heading, body in parts.items() if body)
    versions = sections.versions(facts.results)
    return f"{written}\n" + (f"\nMade with {versions}.\n" if versions else "")


def base_model(facts: Facts) -> str:
    """Which encoder, at which commit, and what its licence means for this model."""
    encoder = facts.config.encoder
    if encoder.random is not None:
        kind = encoder.random["model_type"]
        beside = " It is part of this model." if facts.config.finetune == "full" else f" It is in `{ENCODER}/`."
        return f"A `{kind}` with random weights, which were never pretrained.{beside} It brings no licence of its own."
    name = str(encoder.name_or_path)
    told = f"[{name}]({HUB}/{name})" if "/" in name and not Path(name).is_dir() else f"`{name}`"
    told += f" at commit `{encoder.revision}`." if encoder.revision is not None else "."
    how = "Everything in it was trained further." if facts.config.finetune == "full" else "Its weights are unchanged."
    return f"{told} {how} {licence_text(facts.licence)}"


def licence_text(licence: str | None) -> str:
    """One sentence about the base model's licence."""
    if licence is None:
        return "For its licence, which holds for this model, too, see the base model."
    if "-nc" in licence:
        return (
            f"Its licence, {licence}, allows **no commercial use**; that holds for this model, too, whatever the "
            "licence of the code that made it."
        )
    return f"Its licence is {licence}; what it asks for holds for this model, too."
