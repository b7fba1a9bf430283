"""The dtype table says what torch's autocast does, on each device, for each operation of a block."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.blocks import ops
from lib_accel.blocks.convolution import ConvSpec
from lib_accel.blocks.operators.group_norm import GroupNormSpec
from lib_accel.blocks.rules import AS_IT_COMES, Rules, rules_for
from lib_accel.device import autocast_on

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


class Operation(NamedTuple):
    call: Callable[[Tensor, Tensor, Tensor], Tensor]  # of an image (1, 8, 8, 8), a square weight and a vector
    rule: str | None = None  # the column of the table; None: the dtype stays what it is


OPERATIONS = {
    "conv2d": Operation(lambda x, w, b: F.conv2d(x, w[..., None, None], b), "matmul"),
    "linear": Operation(F.linear, "matmul"),
    "matmul": Operation(lambda x, w, b: torch.matmul(w, x), "matmul"),
    "attention": Operation(lambda x, w, b: F.scaled_dot_product_attention(x, x, x), "matmul"),
    "group_norm": Operation(lambda x, w, b: F.group_norm(x, 2, b, b), "norm"),
    "layer_norm": Operation(lambda x, w, b: F.layer_norm(x, (8,), b, b), "norm"),
    "silu": Operation(lambda x, w, b: F.silu(x)),
    "gelu": Operation(lambda x, w, b: F.gelu(x)),
    "interpolate": Operation(lambda x, w, b: F.interpolate(x, scale_factor=2.0, mode="nearest")),
    "add": Operation(lambda x, w, b: x + x),
    "chunk and multiply": Operation(lambda x, w, b: torch.mul(*x.chunk(2, dim=-1))),
    "pad": Operation(lambda x, w, b: F.pad(x, (1, 1, 1, 1), mode="circular")),
}


def promised(operation: Operation, rules: Rules, come: torch.dtype) -> torch.dtype:
    return come if operation.rule is None else getattr(rules, operation.rule) or come


def under_autocast(name: str, device: str, to: torch.dtype, come: torch.dtype) -> torch.dtype:
    """The dtype of the result with float32 weights, as a CPU needs them, or half ones on a GPU."""
    weights = F32 if device == "cpu" else to
    x = torch.randn(1, 8, 8, 8, device=device, dtype=come)
    with torch.no_grad(), autocast_on(device, to):
        result = OPERATIONS[name].call(
            x, torch.randn(8, 8, device=device, dtype=weights), torch.ones(8, device=device, dtype=weights)
        )
    return result.dtype


@pytest.mark.parametrize("come", [F32, BF16], ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_table_is_what_cpu_autocast_does(name: str, come: torch.dtype) -> None:
    expected = under_autocast(name, "cpu", BF16, come)
    assert promised(OPERATIONS[name], rules_for("cpu", BF16), come) is expected


@pytest.mark.gpu
@pytest.mark.parametrize("to", [F16, BF16], ids=str)
@pytest.mark.parametrize("comes_as_float32", [True, False])
@pytest.mark.parametrize("name", OPERATIONS)
def test_table_is_what_cuda_autocast_does(name: str, comes_as_float32: bool, to: torch.dtype) -> None:
    come = F32 if comes_as_float32 else to
    expected = under_autocast(name, "cuda", to, come)
    assert promised(OPERATIONS[name], rules_for("cuda", to), come) is expected


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_without_autocast_every_operand_keeps_its_dtype(device: str) -> None:
    assert rules_for(device, None) is AS_IT_COMES
    assert set(AS_IT_COMES) == {None}


def test_cuda_norms_are_float32_whatever_autocast_casts_to() -> None:
    assert rules_for("cuda", F16) == Rules(matmul=F16, norm=F32)
    assert rules_for("cuda", BF16) == Rules(matmul=BF16, norm=F32)


# The operations that take rules, under rules of either device; all of them can run on a CPU.
TAKES_RULES: dict[str, tuple[str, Callable[[Tensor, Rules], Tensor]]] = {
    "conv2d": (
        "matmul",
        lambda x, rules: ops.conv2d(x, torch.ones(8, 8, 1, 1), torch.ones(8), ConvSpec(), rules),
    ),
    "linear": ("matmul", lambda x, rules: ops.linear(x, torch.ones(8, 8), torch.ones(8), rules)),
    "attention": ("matmul", lambda x, rules: ops.attention(x[0], x[0], x[0], 2, rules)),
    "layer_norm": (
        "norm",
        lambda x, rules: ops.layer_norm(x, torch.ones(8), torch.ones(8), 1e-5, rules),
    ),
    "group_norm": (
        "norm",
        lambda x, rules: ops.group_norm(
            x, torch.ones(8), torch.ones(8), GroupNormSpec(2, 1e-5, False), rules
        ),
    ),
}


@pytest.mark.parametrize("come", [F32, BF16], ids=str)
@pytest.mark.parametrize("rules", [rules_for("cpu", BF16), rules_for("cuda", BF16)], ids=["cpu", "cuda"])
@pytest.mark.parametrize("name", TAKES_RULES)
def test_operation_returns_the_dtype_of_its_rule(name: str, rules: Rules, come: torch.dtype) -> None:
    column, call = TAKES_RULES[name]
    expected = getattr(rules, column) or come
    assert call(torch.randn(1, 8, 8, 8, dtype=come), rules).dtype is expected


@pytest.mark.parametrize("come", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("rules", [rules_for("cpu", BF16), rules_for("cuda", F16)], ids=["cpu", "cuda"])
def test_upcasting_norm_returns_the_dtype_that_came(rules: Rules, come: torch.dtype) -> None:
    spec = GroupNormSpec(groups=2, eps=1e-5, upcast=True)
    x = torch.randn(1, 8, 8, 8, dtype=come)
    assert ops.group_norm(x, torch.ones(8), torch.ones(8), spec, rules).dtype is come


def test_upcasting_norm_computes_in_float32() -> None:
    x = 300 * torch.ones(1, 8, 4, 4, dtype=F16) + torch.randn(1, 8, 4, 4).half()
    spec = GroupNormSpec(groups=2, eps=1e-5, upcast=True)
    normed = ops.group_norm(x, torch.ones(8), torch.zeros(8), spec, AS_IT_COMES)
    assert torch.equal(normed, F.group_norm(x.float(), 2, torch.ones(8), torch.zeros(8)).half())


def test_attention_equals_softmax_written_out() -> None:
    q, k, v = (torch.randn(2, tokens, 12, dtype=torch.float64) for tokens in (5, 7, 7))
    heads = [part.chunk(3, dim=-1) for part in (q, k, v)]
    expected = [
        torch.softmax(q @ k.transpose(1, 2) / 4**0.5, dim=-1) @ v for q, k, v in zip(*heads, strict=True)
    ]
    assert torch.allclose(ops.attention(q, k, v, 3, AS_IT_COMES), torch.cat(expected, dim=-1))
