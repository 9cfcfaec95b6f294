"""Both mixtures of one attention map, `S V` and `S a`: the bits of the frozen call, gradients of the plain ones."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from deflect_hf.tuners.deflect.attention import _differentiable_mixtures, _is_exact_when_wide, _wide_mixtures

SCALE = 0.125


def call(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float) -> tuple[torch.Tensor]:
    """(B, h, N, D/h) three times -> (B, N, h, D/h), as transformers calls the fused kernel."""
    mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=SCALE)
    return (mixed.transpose(1, 2),)


def tensors(tokens: int, width: int, seed: int, size: int = 64) -> list[torch.Tensor]:
    """Queries, keys, values and the stream of two images and three heads, laid out as a projection leaves them."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, tokens, 3, last, generator=generator).transpose(1, 2).requires_grad_()
        for last in (size, size, size, width)
    ]


@pytest.mark.parametrize("mixtures", [_wide_mixtures, _differentiable_mixtures])
@settings(max_examples=15, deadline=None)
@given(
    tokens=st.integers(2, 300),
    seed=st.integers(0, 99),
    width=st.integers(1, 16),
    size=st.sampled_from([4, 8, 12, 16, 24, 32, 64, 80]),
)
def test_both_mixtures_in_one_call_have_the_bits_and_gradients_of_the_plain_ones(mixtures, tokens, seed, width, size):
    query, key, value, stream = parts = tensors(tokens, width, seed, size)
    plain = call(query, key, value, 0.0)[0]
    mixed, radiometry = mixtures(call, query, key, value, stream)
    if mixtures is _differentiable_mixtures or _is_exact_when_wide(query):
        assert torch.equal(mixed, plain)
    weights = (query @ key.transpose(-1, -2) * SCALE).softmax(-1)
    expected = (weights @ stream).transpose(1, 2)
    torch.testing.assert_close(radiometry, expected, rtol=1e-4, atol=1e-5)
    gradients = [
        torch.autograd.grad([one, two], parts, [torch.ones_like(one).cumsum(1), two.detach()], retain_graph=True)
        for one, two in ((mixed, radiometry), (plain, expected))
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tokens", [50, 64, 66, 145, 197, 201, 261, 577 - 1, 785, 1370])
@torch.no_grad()
def test_a_wide_call_keeps_the_bits_of_common_numbers_of_tokens(tokens):
    query, key, value, stream = tensors(tokens, 5, seed=tokens)
    assert _is_exact_when_wide(query)
    assert torch.equal(_wide_mixtures(call, query, key, value, stream)[0], call(query, key, value, 0.0)[0])


@pytest.mark.parametrize("tokens", [33, 65, 257, 577])
def test_a_row_that_is_left_over_is_not_trusted_to_a_wide_call(tokens):
    assert not _is_exact_when_wide(torch.zeros(1, 1, tokens, 64))


@pytest.mark.parametrize("size", [4, 8, 12, 20])
def test_heads_that_fill_no_registers_are_not_trusted_to_a_wide_call(size):
    assert not _is_exact_when_wide(torch.zeros(1, 1, 197, size))


def test_other_devices_are_not_trusted_to_a_wide_call():
    assert not _is_exact_when_wide(torch.zeros(1, 1, 197, 64, device="meta"))
