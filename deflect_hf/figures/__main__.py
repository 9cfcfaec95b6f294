"""Pictures of a data set before training, and of how runs went.

    python -m deflect_hf.figures dataset --dataset_config configs/datasets/synthetic.yaml --output FOLDER
    python -m deflect_hf.figures curves work-dir/RUN [work-dir/RUN ...] --output curves.png

Each of the two has a --help of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt

from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.data import ENCODER_SIZE, DatasetArguments
from deflect_hf.config.schema import Arguments, UserPath, group, option
from deflect_hf.errors import ConfigError, DataError, listing, run_job
from deflect_hf.figures.results import curves_figure
from deflect_hf.files import refuse_foreign


class DatasetFigureArguments(Arguments):
    """What ``python -m deflect_hf.figures dataset`` can be told."""

    output: UserPath = Field(description="folder of the pictures (needed)")
    split: Literal["train", "val", "test"] = option("train", "which images")
    samples: PositiveInt = option(12, "images on the sample sheets, spread over the split")
    images: PositiveInt | None = option(500, "images that the statistics are made of, spread over the split; null: all")
    dataset: DatasetArguments = group()


class CurvesArguments(Arguments):
    """What ``python -m deflect_hf.figures curves`` can be told."""

    runs: list[UserPath] = Field(description="RUN: folders of runs, with log.jsonl (needed)", min_length=1)
    output: UserPath = option("curves.png", "the picture")


def draw_dataset(words: Sequence[str]) -> list[Path]:
    """Sample sheets and band statistics of one split; a size that only an encoder would tell is left as stored."""
    description = "Sample sheets, band histograms and class counts of a data set."
    arguments = parse_arguments(DatasetFigureArguments, description, words)
    from deflect_hf.data import load_dataset_splits
    from deflect_hf.data.scene_reader import SceneReader
    from deflect_hf.figures.dataset import sample_sheets, splits_figure, statistics_figure

    dataset, split, folder = arguments.dataset, arguments.split, Path(arguments.output)
    if dataset.image_size == ENCODER_SIZE:
        dataset = dataset.replace(image_size=None)
    splits = load_dataset_splits(dataset)
    if split not in splits:
        raise DataError(f"the data set has no split {split!r}, only {listing(splits)}: give --split.")
    refuse_foreign(folder / "splits.png", folder / f"statistics_{split}.png", *folder.glob(f"samples_{split}_*.png"))
    reader = splits[split].reader
    drawn = [splits_figure(folder / "splits.png", reader)] if isinstance(reader, SceneReader) else []
    title = f"{Path(dataset.root).name if dataset.root else dataset.name}, {split}"
    sheets = sample_sheets(folder, splits[split], split, title, arguments.samples)
    statistics = statistics_figure(folder / f"statistics_{split}.png", splits[split], title, arguments.images)
    return [*drawn, *sheets, statistics]


def draw_curves(words: Sequence[str]) -> list[Path]:
    """Learning curves of one or several runs."""
    own = parse_arguments(CurvesArguments, "Learning curves of runs.", words, ("runs",))
    if not own.output.endswith(".png"):
        raise ConfigError(f"--output {own.output}: the picture is a PNG file, its name must end in .png")
    refuse_foreign(Path(own.output))
    return [curves_figure(Path(own.output), [Path(run) for run in own.runs])]


def main(argv: Sequence[str] | None = None) -> None:
    """Choose the picture, draw, tell where it is."""
    drawers = {"dataset": draw_dataset, "curves": draw_curves}
    jobs = {name: lambda words, draw=draw: print(*draw(words), sep="\n") for name, draw in drawers.items()}
    run_job(jobs, __doc__ or "", argv)


if __name__ == "__main__":
    main()
