"""Batches with another adapter for each sample, which PEFT would run without a word if a tuner did not refuse them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deflect_hf.errors import UnsupportedOperationError


class OneAdapterPerBatch:
    """A tuner that applies the active adapters to all samples of a batch alike."""

    method: str

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise UnsupportedOperationError(
                f"{self.method} cannot use another adapter per sample (adapter_names=[...]). "
                "Fix: group the samples by adapter and call model.set_adapter(name) before each group."
            )
        yield
