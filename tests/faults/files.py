"""What can be wrong with a safetensors or JSON file, whoever reads it."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.faults.inputs import change_json, change_tensors, junk

WEIGHTS, ADAPTER, TASK = "adapter_model.safetensors", "adapter_config.json", "config.json"
PROCESSOR, CONFIG = "preprocessor_config.json", "config.yaml"
NAN = float("nan")
Change = Callable[[Path], Any]
ERROR_PAGE = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def safetensors_of(header: bytes, body: bytes = b"\0" * 64) -> bytes:
    """A file with this header, whatever it says."""
    return struct.pack("<Q", len(header)) + header + body


def one_tensor(dtype: str, shape: list[int], offsets: list[int]) -> bytes:
    """A file that announces one tensor."""
    return safetensors_of(json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode())


HEADERS: list[tuple[str, bytes]] = [
    ("nothing", b""),
    ("random bytes", junk(11)),
    ("a header of 16 exabytes", b"\xff" * 8 + b"{}"),
    ("a header that is no JSON", safetensors_of(b"not JSON at all!")),
    ("no tensors", safetensors_of(b"{}", b"")),
    ("an unknown dtype", one_tensor("F99", [16], [0, 64])),
    ("a negative shape", one_tensor("F32", [-16], [0, 64])),
    ("a pickle", b"\x80\x04\x95\x1a\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."),
    ("an error page", ERROR_PAGE),
    ("a pointer of Git LFS", LFS_POINTER),
]
JSONS: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("no JSON", b"hidden_size: 16"),
    ("random bytes", junk(12)),
    ("a list", b"[1, 2]"),
    ("null", b"null"),
    ("100 000 brackets", b"[" * 100_000),
]


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    """Changes the tensors of a file."""
    return lambda path: change_tensors(path, change)


def entries(**changes: Any) -> Change:
    """Changes the entries of a JSON file."""
    return lambda path: change_json(path, **changes)


def bytes_(data: bytes) -> Change:
    """Replaces the content of a file."""
    return lambda path: path.write_bytes(data)


def first(values: dict[str, torch.Tensor]) -> str:
    return min(name for name in values if values[name].is_floating_point())


def drop(values: dict[str, torch.Tensor]) -> None:
    del values[first(values)]


def rename(values: dict[str, torch.Tensor]) -> None:
    values["other.weight"] = values.pop(first(values))


def reshape(values: dict[str, torch.Tensor]) -> None:
    values[first(values)] = torch.zeros(3, 5)


def not_numbers(values: dict[str, torch.Tensor]) -> None:
    values[first(values)] = torch.full_like(values[first(values)], NAN)


def infinite(values: dict[str, torch.Tensor]) -> None:
    values[first(values)].flatten()[0] = torch.inf


def whole_numbers(values: dict[str, torch.Tensor]) -> None:
    for name in values:
        values[name] = values[name].to(torch.int64)


def complex_numbers(values: dict[str, torch.Tensor]) -> None:
    for name in values:
        values[name] = values[name].to(torch.complex64)


def too_many(values: dict[str, torch.Tensor]) -> None:
    values["base_model.model.another.weight"] = torch.zeros(3)


TENSORS: list[tuple[str, Change]] = [
    ("a tensor fewer", tensors(drop)),
    ("a tensor renamed", tensors(rename)),
    ("a tensor of another shape", tensors(reshape)),
    ("a tensor of NaN", tensors(not_numbers)),
    ("an infinite number", tensors(infinite)),
    ("whole numbers", tensors(whole_numbers)),
    ("complex numbers", tensors(complex_numbers)),
]
