"""A trained model as one file that needs neither PEFT nor transformers: ``.pt2`` of torch.export, or ONNX.

    deflect-export work-dir/RUN model.pt2
    deflect-export USER/NAME model.onnx --batch_size 1

(B, C, H, W) float32 reflectance, NaN where nothing was measured -> probabilities (values, of a regression), NaN where
no band was measured. B is any number unless --batch_size says one; H and W are those of deflect-predict's windows.
Beside FILE, FILE.json describes it: a STAC item with the Machine Learning Model extension. What differs from the
trained model by more than 1e-5 is not written. ONNX needs the extra: pip install 'deflect_hf[onnx]'.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.inference import ExportArguments
from deflect_hf.config.tasks import TASKS
from deflect_hf.errors import CheckpointError, ConfigError, show_log, user_errors
from deflect_hf.files import temp_dir, write_json
from deflect_hf.inference.exported import DESCRIBED, Run, card_of, checksum, is_exported, open_onnx, open_pt2
from deflect_hf.inference.model import measured_only

if TYPE_CHECKING:
    from deflect_hf.inference.predictor import Predictor

TOLERANCE = 1e-5
LARGEST_BATCH = 2**16
EXTENSIONS = ("mlm/v1.5.0", "file/v2.1.0")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, export, print."""
    words = sys.argv[1:] if argv is None else list(argv)
    with user_errors(words):
        arguments = parse_arguments(ExportArguments, __doc__ or "", words, ("run", "output"))
        show_log()
        from deflect_hf import load_predictor

        predictor = load_predictor(arguments.run, revision=arguments.revision, encoder=arguments.encoder, device="cpu")
        target = Path(arguments.output)
        difference = export(
            predictor,
            target,
            window=arguments.window,
            batch_size=arguments.batch_size,
            overwrite=arguments.overwrite,
        )
        print(f"{target}: at most {difference:.1e} from the trained model; {card_of(target)} describes it")


def export(
    predictor: Predictor,
    target: Path,
    *,
    window: int | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
) -> float:
    """Write ``target``, ``.pt2`` or ``.onnx``, and its card; both only if it computes what the model computes.

    Args:
        window: side of the images in pixels; None: as scenes are cut, or what training resized to.
        batch_size: images per call; None: any number.

    Returns:
        The largest difference from the model, in float32, on images with and without unmeasured pixels.

    Raises:
        ConfigError: files of that name are there, or ``window`` does not fit the model.
        CheckpointError: the file computes something else than the model.
        MissingPackageError: of ``.onnx``, without the extra ``onnx``.
    """
    from deflect_hf.inference.scenes import window_size

    taken = [path for path in (target, card_of(target)) if path.exists()]
    if taken and not overwrite:
        raise ConfigError(f"{taken[0]} is there already: give another name, or replace it with --overwrite.")
    if taken and not is_exported(target):
        raise ConfigError(
            f"{taken[0]} is no model that deflect-export wrote, with its card: move it away, or give another name."
        )
    size = predictor.processor.size
    if size is not None and window is not None:
        raise ConfigError(f"--window {window}: the model resizes its images to {size['height']} x {size['width']}.")
    height, width = (size["height"], size["width"]) if size is not None else window_size(predictor, window)
    # of any number of images, three stand for it: of one, torch would make a constant
    images = samples(batch_size or 3, len(predictor.processor.bands), height, width)
    model = Probabilities(predictor).eval()
    batch = None if batch_size is not None else {0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)}
    with temp_dir(target.with_name(f"{target.name}.partial")) as folder, torch.no_grad():
        made = folder / target.name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what torch's own exporter calls
            program = torch.export.export(model, (images,), dynamic_shapes={"pixel_values": batch})
            name = output_name(predictor.task)
            write = partial(write_onnx, name=name) if target.suffix == ".onnx" else write_pt2
            run = write(program, images, made)
        batches = [images] if batch_size is not None else [images[:1], images]
        difference = max(compare(run, model, pixel_values, target) for pixel_values in batches)
        write_json(card_of(made), card(predictor, made, [batch_size or -1, images.shape[1], height, width]))
        os.replace(made, target)
        os.replace(card_of(made), card_of(target))
    return difference


def output_name(task: str) -> str:
    """What the output of a file is called."""
    return "values" if TASKS[task].output == "value" else "probabilities"


class Probabilities(nn.Module):
    """(B, C, H, W) reflectance -> (B, K) or (B, K, H, W) probabilities or values, NaN where no band was measured."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.predictor, self.model = predictor, predictor.model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """See above."""
        predictor = self.predictor
        return measured_only(predictor.target.predict(predictor.whole_logits(pixel_values).float()), pixel_values)


def samples(count: int, channels: int, height: int, width: int) -> Tensor:
    """(count, C, H, W) reflectance: parts of the first image, and of a band of the last, were not measured."""
    images = torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0)) * 0.4
    images[0, :, : height // 3, : width // 3] = torch.nan
    images[-1, -1, height // 2 :] = torch.nan
    return images


def write_pt2(program: Any, images: Tensor, path: Path) -> Run:
    """Write a program of torch.export, and read it again."""
    stored = io.BytesIO()  # of a file that it cannot write, torch ends the process
    torch.export.save(program, stored)
    path.write_bytes(stored.getbuffer())
    return open_pt2(path)


def write_onnx(program: Any, images: Tensor, path: Path, name: str) -> Run:
    """Write a program, the output of which has a name, as ONNX, all in one file, and read it again."""
    # onnxscript's optimizer makes 0 of some deviations of indices over partly measured patches; onnxruntime has its own
    made = torch.onnx.export(
        program, (images,), dynamo=True, optimize=False, verbose=False,
        input_names=["pixel_values"], output_names=[name],
    )  # fmt: skip
    assert made is not None  # as it is without a file
    made.save(path, external_data=False)
    return open_onnx(path)


def compare(run: Run, model: nn.Module, images: Tensor, target: Path) -> float:
    """The largest difference of what was written from the model; too large a one is refused."""
    expected, found = model(images), run(images)
    alike = found.shape == expected.shape and bool((found.isnan() == expected.isnan()).all())
    difference = float((found - expected).nan_to_num().abs().max()) if alike else float("inf")
    scale = max(1.0, float(expected.nan_to_num().abs().max()))  # of values in a unit
    if not difference <= TOLERANCE * scale:
        raise CheckpointError(
            f"{target} is not written: it would differ from the trained model by {difference:.1e}, more than "
            f"{TOLERANCE * scale:.0e}. Fix: export to the other format (.pt2 or .onnx), or predict with the run itself."
        )
    return difference


def card(predictor: Predictor, file: Path, shape: list[int]) -> dict[str, Any]:
    """A STAC item with the Machine Learning Model extension, and how stored values become the model's input.

    Sources: github.com/stac-extensions/mlm, version 1.5.0; github.com/stac-extensions/file, version 2.1.0.
    """
    from deflect_hf.methods import task_model

    task, model, processor = TASKS[predictor.task], task_model(predictor.model), predictor.processor
    dense = {"classification": "scene-classification", "segmentation": "semantic-segmentation"}
    kind = [dense.get(task.name, "regression" if task.output == "value" else "classification")]
    onnx = file.suffix == ".onnx"
    order = ["batch", "channel", "height", "width"]
    result = [shape[0], len(predictor.classes), *(shape[2:] if task.dense else [])]
    values = predictor.class_values or range(len(predictor.classes))
    classes = [
        {"value": value, "name": name, "description": name}
        for value, name in zip(values, predictor.classes, strict=True)
    ]
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [f"https://stac-extensions.github.io/{name}/schema.json" for name in EXTENSIONS],
        "id": file.name,
        "geometry": None,
        "properties": {
            "datetime": None,
            "start_datetime": "1900-01-01T00:00:00Z",
            "end_datetime": "9999-12-31T23:59:59Z",
            "mlm:name": f"deflect_hf-{file.stem}",
            "mlm:architecture": type(model.encoder).__name__,
            "mlm:framework": "ONNX" if onnx else "PyTorch",
            "mlm:framework_version": torch.__version__.partition("+")[0],
            "mlm:tasks": kind,
            "mlm:total_parameters": sum(parameter.numel() for parameter in predictor.model.parameters()),
            "mlm:input": [
                {
                    "name": "reflectance, NaN where not measured",
                    "bands": list(processor.bands),
                    "input": {"shape": shape, "dim_order": order, "data_type": "float32"},
                    "resize_type": None if processor.size is None else "interpolation-linear",
                }
            ],
            "mlm:output": [
                {
                    "name": output_name(task.name),
                    "tasks": kind,
                    "result": {"shape": result, "dim_order": order[: len(result)], "data_type": "float32"},
                    "classification:classes": classes if task.output != "value" else [],
                }
            ],
            "deflect_hf:processor": processor.to_dict(),
            **{f"deflect_hf:{name}": getattr(predictor, name) for name in DESCRIBED},
        },
        "links": [],
        "assets": {
            "model": {
                "href": f"./{file.name}",
                "type": "application/octet-stream",
                "roles": ["mlm:model"],
                "mlm:artifact_type": "ONNX" if onnx else "torch.export.save",
                "file:checksum": checksum(file),
            }
        },
    }


if __name__ == "__main__":
    main()
