"""On a GPU: the checks of `python -m deflect_hf.benchmark gpu`. Without one they are skipped, and say so."""

import pytest
import torch

from deflect_hf.benchmark.gpu import CHECKS, Bench, GPUArguments

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here"),
]


@pytest.mark.parametrize("name", list(CHECKS))
def test_what_holds_on_the_cpu_holds_here(name, tmp_path):
    CHECKS[name](Bench(GPUArguments(output=str(tmp_path), size="small", batch_size=2)))
