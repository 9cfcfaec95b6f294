"""Files of deflect-export as models for maps: torch or onnxruntime computes them, not PEFT and transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from deflect_hf.config.tasks import TASKS
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.errors import CheckpointError, UnsupportedOperationError, brief
from deflect_hf.inference.model import Facts, MapModel

Run = Callable[[Tensor], Tensor]
LEAST = torch.finfo(torch.float32).tiny  # what a probability of 0 counts as, which has no logarithm


# of a model, what its card says as well: ``deflect_hf:NAME``
DESCRIBED = ("task", "classes", "class_values", "colors", "patch_size", "unit", "temperature")


def card_of(target: Path) -> Path:
    """The description beside an exported file."""
    return target.with_name(f"{target.name}.json")


def checksum(file: Path) -> str:
    """SHA-256 of a file, as a multihash."""
    with file.open("rb") as content:
        return f"1220{hashlib.file_digest(content, 'sha256').hexdigest()}"


def is_exported(target: Path) -> bool:
    """Whether the file, if it is there, and its card are as deflect-export wrote them."""
    try:
        item = json.loads(card_of(target).read_bytes())
        written = item["assets"]["model"]["file:checksum"]
        return "deflect_hf:task" in item["properties"] and (not target.exists() or checksum(target) == written)
    except (OSError, ValueError, TypeError, LookupError):
        return False


def open_pt2(path: Path) -> Run:
    """A program of torch.export: (B, C, H, W) reflectance -> probabilities or values."""
    module = torch.export.load(path).module()
    return lambda pixel_values: module(pixel_values)


def open_onnx(path: Path) -> Run:
    """An ONNX file: (B, C, H, W) reflectance -> probabilities or values."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda pixel_values: torch.from_numpy(session.run(None, {"pixel_values": pixel_values.numpy()})[0])


class ExportedModel(MapModel):
    """A file that deflect-export wrote, on the CPU; its card beside it says how images are read for it.

    Raises:
        CheckpointError: the file or its card is missing, broken, of another file, or not of deflect-export.
        MissingPackageError: of ``.onnx``, without the extra ``onnx``.
    """

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        beside = card_of(self.file)
        fix = f"deflect-export RUN {self.file.name} writes the model and its card, which stay side by side."
        for path in (self.file, beside):
            if not path.is_file():
                raise CheckpointError(f"{path} is no file: {fix}")
        self.card = beside.read_bytes()
        try:
            item = json.loads(self.card)
            described, written = item["properties"], item["assets"]["model"]["file:checksum"]
            self.processor = MultispectralImageProcessor.from_dict(described["deflect_hf:processor"])
            described.setdefault("deflect_hf:colors", [])  # of which former cards say nothing
            for name in DESCRIBED:
                value = described[f"deflect_hf:{name}"]
                setattr(self, name, tuple(value) if isinstance(value, list) else value)
            self.task, self.token_size = TASKS[self.task].name, self.patch_size
            self.batch_size, _, self.height, self.width = described["mlm:input"][0]["input"]["shape"]
        except (ValueError, TypeError, LookupError) as error:
            raise CheckpointError(f"{beside} does not describe an exported model ({brief(error)}): {fix}") from error
        if checksum(self.file) != written:
            raise CheckpointError(f"{self.file} is damaged, or not the file that {beside} describes: {fix}")
        self.input_size = self.height, self.width
        try:
            self._run = (open_onnx if self.file.suffix == ".onnx" else open_pt2)(self.file)
        except ImportError:  # which says what to install
            raise
        except Exception as error:  # whatever these libraries raise of a broken file
            raise CheckpointError(f"{self.file} cannot be read ({brief(error)}): {fix}") from error

    @torch.no_grad()
    def forward(self, pixel_values: Tensor, window: int | None) -> Tensor:
        """(B, C, h, w) reflectance, filled up to its size -> (B, K, h, w) logarithms of probabilities, or values.

        Logarithms are as good as logits, from which they differ by one number for all classes of a pixel.
        """
        height, width = pixel_values.shape[-2:]
        beyond = (0, self.width - width, 0, self.height - height)
        images = F.pad(pixel_values, beyond, value=torch.nan)
        step = self.batch_size if self.batch_size > 0 else len(images)
        predicted = torch.cat([self._batch(some) for some in images.split(step)])[..., :height, :width]
        if TASKS[self.task].output != "value":
            predicted = predicted.clamp(min=LEAST).log()
        measured = torch.isfinite(pixel_values).any(dim=1, keepdim=True)
        predicted = torch.where(measured, predicted, 0.0)
        return predicted if self.processor.size is None else _filled(predicted, measured)

    def _batch(self, images: Tensor) -> Tensor:
        """(b, C, H, W) -> (b, K, H, W) of as many images as the file takes, or fewer."""
        missing = max(0, self.batch_size - len(images))
        return self._run(F.pad(images, (0, 0) * 3 + (0, missing), value=torch.nan))[: len(images)]

    @property
    def embedding_size(self) -> NoReturn:
        """Refused: the file gives probabilities alone."""
        raise UnsupportedOperationError(
            f"{self.file} holds no embeddings, which only the run has that it was exported from: give --adapter RUN."
        )

    def digest(self) -> str:
        """Checksum of the card, which holds that of the file."""
        return hashlib.blake2b(self.card, digest_size=16).hexdigest()

    def origin(self) -> Facts:
        """What the file is."""
        return [("Format", "ONNX" if self.file.suffix == ".onnx" else "torch.export")]


def _filled(predicted: Tensor, measured: Tensor) -> Tensor:
    """(B, K, h, w), 0 where not (B, 1, h, w) measured -> there the mean of the neighbors, which resizing mixes."""
    while True:
        weight = F.avg_pool2d(measured.float(), 3, stride=1, padding=1)
        near = (weight > 0) & ~measured
        if not bool(near.any()):
            return predicted
        predicted = torch.where(near, F.avg_pool2d(predicted, 3, stride=1, padding=1) / weight, predicted)
        measured = measured | near
