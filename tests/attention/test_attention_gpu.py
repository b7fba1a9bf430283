"""On a GPU every back end that is offered gives what the formula gives in float32, within its rounding."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lib_accel.blocks.operators.attention import ATTENTION
from lib_accel.blocks.operators.operator import Implementation
from tests.attention.place import by_formula

pytestmark = pytest.mark.gpu

# Of the whole result, as its norm: weights and result are each rounded to the dtype.
TOLERANCES = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-4}

# Heads, size of a head, tokens, those of the source: of SD1.5, SDXL and the VAE, and what nothing divides.
SHAPES = [
    (8, 40, 4096, 4096),
    (8, 40, 16384, 16384),
    (8, 40, 4096, 77),
    (8, 80, 1024, 1024),
    (8, 80, 1024, 154),
    (8, 160, 256, 256),
    (8, 160, 64, 64),
    (8, 160, 64, 231),
    (10, 64, 4096, 4096),
    (20, 64, 1024, 77),
    (1, 512, 4096, 4096),
    (8, 40, 4095, 4095),
    (8, 80, 987, 77),
    (8, 160, 63, 65),
    (10, 64, 1, 77),
]


def _random(heads: int, size: int, tokens: int, source: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator("cuda").manual_seed(tokens + source)
    shapes = [(2, count, heads * size) for count in (tokens, source, source)]
    return tuple(torch.randn(each, generator=generator, device="cuda", dtype=dtype) for each in shapes)


def _some_rows(tokens: int) -> Tensor:
    """Numbers of the first, the last and some other queries: the formula for all of them needs 17 GB."""
    return torch.linspace(0, tokens - 1, min(tokens, 64), device="cuda").long()


def _exact(inputs: Sequence[Tensor], heads: int, chosen: Tensor) -> Tensor:
    query, key, value = (tensor.float().unflatten(2, (heads, -1)) for tensor in inputs)
    return by_formula(query[:, chosen], key, value, query.shape[-1] ** -0.5).flatten(2)


def _error(result: Tensor, expected: Tensor) -> float:
    return float((result.float() - expected.float()).norm() / expected.float().norm())


def _offered(inputs: Sequence[Tensor], heads: int) -> Sequence[Implementation]:
    offered = ATTENTION.others(*inputs, heads, None)
    assert offered, "no back end takes the tensors"
    return offered


@pytest.mark.parametrize(("heads", "size", "tokens", "source"), SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_each_back_end_is_near_the_formula(
    heads: int, size: int, tokens: int, source: int, dtype: torch.dtype
) -> None:
    inputs, chosen = _random(heads, size, tokens, source, dtype), _some_rows(tokens)
    exact = _exact(inputs, heads, chosen)
    for name, run in _offered(inputs, heads):
        result = run(*inputs, heads, None)
        assert (result.shape, result.is_contiguous()) == (inputs[0].shape, True), name
        error = _error(result[:, chosen], exact)
        assert error <= TOLERANCES[dtype], f"{name} is {error:.2g} off"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tensors_are_cast_first(dtype: torch.dtype) -> None:
    inputs = _random(8, 40, 1024, 77, torch.float32)
    cast = [tensor.to(dtype) for tensor in inputs]
    for name, run in ATTENTION.others(*inputs, 8, dtype):
        result, expected = run(*inputs, 8, dtype), run(*cast, 8, None)
        assert result.dtype is dtype, name
        assert _error(result, expected) <= TOLERANCES[dtype], name


def test_nothing_of_the_callers_is_changed() -> None:
    inputs = _random(8, 40, 1024, 77, torch.float16)
    before, state = [tensor.clone() for tensor in inputs], torch.cuda.get_rng_state()
    for name, run in _offered(inputs, 8):
        run(*inputs, 8, None).zero_()
        assert all(map(torch.equal, inputs, before)), name
        assert torch.equal(torch.cuda.get_rng_state(), state), f"{name} took random numbers"


def test_the_same_bits_come_twice_from_who_is_called_deterministic() -> None:
    inputs = _random(8, 40, 4096, 4096, torch.float16)
    torch.use_deterministic_algorithms(True, warn_only=False)
    try:
        for name, run in _offered(inputs, 8):
            assert torch.equal(run(*inputs, 8, None), run(*inputs, 8, None)), name
    finally:
        torch.use_deterministic_algorithms(False)


def test_each_back_end_can_be_captured() -> None:
    inputs = _random(8, 40, 1024, 1024, torch.float16)
    for name, run in _offered(inputs, 8):
        expected = run(*inputs, 8, None)  # what it prepares at its first call comes before the capture
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = run(*inputs, 8, None)
        result.zero_()
        graph.replay()
        assert _error(result, expected) <= TOLERANCES[torch.float16], name
