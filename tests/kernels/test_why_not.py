"""Each kernel says why it cannot take some inputs, and its operation then runs as plain torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lib_accel.kernels import (
    bias_residual,
    configs,
    geglu,
    group_norm,
    group_norm_joined,
    layer_norm,
    linear_geglu,
    lora_fuse,
    support,
)
from lib_accel.kernels.group_norm import Norm
from lib_accel.kernels.lora_fuse import Layer, Pair

ROOT = Path(__file__).resolve().parent.parent.parent

NORM = Norm(2, 1e-5, torch.float16)
X = torch.zeros(2, 4, 3, 5, dtype=torch.float16)
LAST = X.contiguous(memory_format=torch.channels_last)


def meta(*shape: int) -> Tensor:
    """A tensor that takes no memory."""
    return torch.empty(shape, dtype=torch.float16, device="meta")


@pytest.fixture(autouse=True)
def _facts_are_looked_up_anew() -> Iterator[None]:
    cached = (
        *(support.why_not_triton, support._why_not_gpu, support._why_not_bfloat16),
        *(linear_geglu._why_not_tensor_cores, linear_geglu._table),
    )
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def test_on_a_cpu_the_device_is_the_only_reason() -> None:
    only = ("device is cpu, needs cuda",)
    assert group_norm.why_not(X, None, None, NORM) == only
    assert group_norm.why_not(LAST, None, None, NORM) == only
    assert group_norm_joined.why_not(X, X, torch.zeros(8), None, NORM) == only
    assert group_norm.why_not(X, None, None, NORM, torch.zeros(2, 4)) == only
    assert bias_residual.why_not(X, torch.zeros(4), X.float()) == only
    assert bias_residual.why_not(LAST, torch.zeros(4), LAST) == only
    assert linear_geglu.why_not(torch.zeros(3, 16).half(), torch.zeros(32, 16).half(), None) == only
    assert layer_norm.why_not(X, torch.zeros(5), None, torch.float16) == only
    assert geglu.why_not(X.reshape(2, 60)) == only
    assert lora_fuse.why_not([layer()]) == only


@pytest.mark.parametrize(
    ("x", "weight", "norm", "reason"),
    [
        (X.double(), None, NORM, "dtype is torch.float64"),
        (X, torch.zeros(4, dtype=torch.int32), NORM, "dtype is torch.int32"),
        (X, None, NORM._replace(dtype=torch.float64), "result is torch.float64"),
        (X, None, NORM._replace(out_dtype=torch.int8), "result is torch.int8"),
        (X[0], None, NORM, "dimensions"),
        (X[:0], None, NORM, "empty"),
        (X.transpose(2, 3), None, NORM, "strides"),
        (X[:, :, :, ::2], None, NORM, "strides"),
        (X, None, NORM._replace(groups=3), "do not divide"),
        (X, None, NORM._replace(groups=0), "do not divide"),
        (X[:1, :2, :1, :1], None, NORM, "one value"),
        (X, torch.zeros(5), NORM, "weight is (5,)"),
        (X, torch.zeros(8)[::2], NORM, "weight is (4,) with strides (2,)"),
        (X, meta(4), NORM, "one device"),
        (nn.Parameter(X), None, NORM, "gradients"),
        (meta(1, 2**10, 2**11, 2**10), None, NORM, "elements"),
        (meta(2**16, 2**10, 2**8, 2**8), None, NORM, "programs"),
    ],
)
def test_group_norm_says_why_not(x: Tensor, weight: Tensor | None, norm: Norm, reason: str) -> None:
    assert any(reason in each for each in group_norm.why_not(x, weight, None, norm))


@pytest.mark.parametrize(
    ("shift", "reason"),
    [
        (torch.zeros(2, 5), "shift is (2, 5)"),
        (torch.zeros(4), "shift is (4,)"),
        (torch.zeros(1, 4), "needs (2, 4)"),
        (torch.zeros(2, 8)[:, ::2], "with strides (8, 2)"),
        (torch.zeros(2, 4, dtype=torch.float64), "dtype is torch.float64"),
        (meta(2, 4), "one device"),
        (torch.zeros(2, 4, requires_grad=True), "gradients"),
    ],
)
def test_group_norm_says_why_not_with_a_shift(shift: Tensor, reason: str) -> None:
    assert any(reason in each for each in group_norm.why_not(X, None, None, NORM, shift))


@pytest.mark.parametrize(
    ("x", "bias", "residual", "reason"),
    [
        (X, None, X[:1], "shapes are (2, 4, 3, 5) and (1, 4, 3, 5)"),
        (torch.zeros(()), None, torch.zeros(()), "dimension of channels"),
        (X, None, LAST, "strides"),
        (X[0].transpose(0, 1), None, X[0].transpose(0, 1), "strides"),
        (X[:, :, :, ::2], None, X[:, :, :, ::2], "strides"),
        (X, torch.zeros(5), X, "bias is (5,)"),
        (X[0], torch.zeros(4), X[0], "needs (5,)"),
        (X, torch.zeros(8)[::2], X, "bias is (4,) with strides (2,)"),
        (X, None, X.double(), "dtype is torch.float64"),
        (X[:0], None, X[:0], "empty"),
        (X, meta(4), X, "one device"),
        (nn.Parameter(X), None, X, "gradients"),
        (meta(2**31, 2), None, meta(2**31, 2), "programs"),
    ],
)
def test_bias_residual_says_why_not(x: Tensor, bias: Tensor | None, residual: Tensor, reason: str) -> None:
    assert any(reason in each for each in bias_residual.why_not(x, bias, residual))


TOKENS, WEIGHT = torch.zeros(3, 48, dtype=torch.float16), torch.zeros(64, 48, dtype=torch.float16)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "reason"),
    [
        (TOKENS.float(), WEIGHT.float(), None, "dtypes are torch.float32"),
        (TOKENS, WEIGHT.bfloat16(), None, "dtypes are torch.float16 and torch.bfloat16"),
        (TOKENS[:, :32], WEIGHT, None, "shapes are (3, 32) and (64, 48)"),
        (TOKENS, WEIGHT[:63], None, "2 * inner"),
        (TOKENS, WEIGHT[None], None, "2 * inner"),
        (TOKENS, WEIGHT[:48], None, "of the result 24, needs multiples of 16"),
        (TOKENS[:, :40].contiguous(), WEIGHT[:, :40].contiguous(), None, "channels are 40"),
        (TOKENS, torch.zeros(48, 64).half().t(), None, "strides"),
        (TOKENS.t().contiguous().t(), WEIGHT, None, "strides"),
        (torch.zeros(145).half()[1:].view(3, 48), WEIGHT, None, "multiple of 16 bytes"),
        (TOKENS, torch.zeros(64 * 48 + 1).half()[1:].view(64, 48), None, "multiple of 16 bytes"),
        (TOKENS, WEIGHT, torch.zeros(32), "bias is (32,)"),
        (TOKENS[:0], WEIGHT, None, "empty"),
        (meta(2, 2**16), meta(2**16, 2**16), None, "elements"),
        (meta(2**31, 16), meta(2**12, 16), None, "programs"),
    ],
)
def test_linear_geglu_says_why_not(x: Tensor, weight: Tensor, bias: Tensor | None, reason: str) -> None:
    assert any(reason in each for each in linear_geglu.why_not(x, weight, bias))


@pytest.mark.parametrize(("capability", "count"), [((7, 5), 1), ((8, 0), 0), ((12, 0), 0)])
def test_products_want_tensor_cores_that_triton_uses(
    capability: tuple[int, int], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert len(linear_geglu._why_not_tensor_cores(torch.device("cuda"))) == count


@pytest.mark.parametrize(
    ("capability", "is_large"),
    [((8, 0), False), ((8, 9), False), ((9, 0), True), ((10, 0), True), ((12, 0), False)],
)
def test_large_tiles_are_for_gpus_with_the_shared_memory(
    capability: tuple[int, int], is_large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    tables = {True: configs.LINEAR_GEGLU_LARGE, False: configs.LINEAR_GEGLU}
    assert linear_geglu._table(torch.device("cuda")) is tables[is_large]


def test_parameters_are_taken_where_no_gradients_are_asked_for() -> None:
    with torch.no_grad():
        assert len(group_norm.why_not(X, nn.Parameter(torch.zeros(4)), None, NORM)) == 1


def test_a_large_batch_is_taken() -> None:
    assert len(group_norm.why_not(meta(64, 2**9, 2**9, 2**9), None, None, NORM)) == 1


class Odd(Tensor):
    """A tensor that may mean anything."""


def test_foreign_tensors_are_not_taken() -> None:
    assert any("plain ones" in each for each in group_norm.why_not(X.as_subclass(Odd), None, None, NORM))


def test_tracing_is_left_to_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "is_compiling", lambda: True)
    assert any("torch.compile" in each for each in geglu.why_not(X))


@pytest.mark.parametrize(
    ("right", "reason"),
    [
        (X.float(), "one dtype"),
        (X[:1], "one dtype, batch"),
        (X[:, :, :2], "height"),
        (LAST, "strides"),
    ],
)
def test_group_norm_of_two_images_says_why_not(right: Tensor, reason: str) -> None:
    assert any(reason in each for each in group_norm_joined.why_not(X, right, None, None, NORM))


@pytest.mark.parametrize(
    ("x", "weight", "dtype", "reason"),
    [
        (torch.zeros(3, 9000), None, torch.float32, "at most 8192"),
        (torch.zeros(3, 4).t(), None, torch.float32, "strides"),
        (torch.zeros(3, 4), torch.zeros(3), torch.float32, "weight"),
        (torch.zeros(3, 4), None, torch.float64, "result"),
        (torch.zeros(()), None, torch.float32, "no dimension"),
    ],
)
def test_layer_norm_says_why_not(x: Tensor, weight: Tensor | None, dtype: torch.dtype, reason: str) -> None:
    assert any(reason in each for each in layer_norm.why_not(x, weight, None, dtype))


@pytest.mark.parametrize(
    ("x", "reason"),
    [(torch.zeros(3, 5), "even"), (torch.zeros(4, 3).t(), "strides"), (torch.zeros(()), "even")],
)
def test_geglu_says_why_not(x: Tensor, reason: str) -> None:
    assert any(reason in each for each in geglu.why_not(x))


def layer(height: int = 4, width: int = 6, dtype: torch.dtype = torch.float16) -> Layer:
    weight = torch.zeros(height, width, dtype=dtype)
    return Layer(weight, weight.clone(), [Pair(torch.zeros(height, 2), torch.zeros(2, width), 1.0)])


GOOD = layer()
UP, DOWN, _ = GOOD.pairs[0]


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([], "no layers"),
        ([GOOD, layer(height=5)], "needs one device, shape"),
        ([GOOD, layer(dtype=torch.float32)], "needs one device, shape"),
        ([GOOD._replace(base=GOOD.base.float())], "base is torch.float32"),
        ([GOOD._replace(base=meta(4, 6))], "one device"),
        ([GOOD._replace(pairs=[Pair(UP[:, :1], DOWN, 1.0)])], "do not make"),
        ([GOOD._replace(pairs=[Pair(UP, DOWN.half(), 1.0)])], "several dtypes"),
        ([GOOD._replace(pairs=[Pair(UP, DOWN.t().contiguous().t(), 1.0)])], "not contiguous"),
        ([GOOD._replace(live=torch.zeros(6, 4, dtype=torch.float16).t())], "not contiguous"),
        ([GOOD._replace(pairs=[Pair(torch.zeros(9)[1:].view(4, 2), DOWN, 1.0)])], "multiple of 16"),
        ([Layer(torch.zeros(4), torch.zeros(4), [])], "dimensions"),
        ([Layer(meta(2**16, 2**16), meta(2**16, 2**16), [])], "elements"),
    ],
)
def test_lora_says_why_not(layers: list[Layer], reason: str) -> None:
    assert any(reason in each for each in lora_fuse.why_not(layers))


@pytest.mark.parametrize(
    ("version", "reason"), [(None, "not installed"), ("2.1.0", "older than 3.0"), ("3.0.0", None)]
)
def test_old_or_missing_triton_is_a_reason(
    version: str | None, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "installed_version", lambda module: version)
    monkeypatch.setattr(support.importlib, "import_module", lambda name: None)
    assert [reason in each for each in support.why_not_triton()] == ([True] if reason else [])


def test_triton_that_cannot_be_imported_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "installed_version", lambda module: "3.7.1")
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "cannot be imported" in support.why_not_triton()[0]


@pytest.mark.parametrize(
    ("capability", "gpu", "bfloat16"), [((7, 0), 1, 1), ((7, 5), 0, 1), ((8, 0), 0, 0), ((12, 0), 0, 0)]
)
def test_old_gpu_is_a_reason(
    capability: tuple[int, int], gpu: int, bfloat16: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "why_not_triton", lambda: ())
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert len(support._why_not_gpu(torch.device("cuda"))) == gpu
    assert len(support._why_not_bfloat16(torch.device("cuda"))) == bfloat16


def test_rocm_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "why_not_triton", lambda: ())
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert "ROCm" in support._why_not_gpu(torch.device("cuda"))[0]


_WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
from lib_accel.kernels import bias_residual, geglu, group_norm, group_norm_joined
from lib_accel.kernels import layer_norm, linear_geglu, lora_fuse
x = torch.randn(2, 4, 3, 6)
norm = group_norm.Norm(2, 1e-5, torch.float32)
group_norm.group_norm(x, None, None, norm)
group_norm_joined.group_norm_joined(x, x, None, None, norm, keep=True)
layer_norm.layer_norm(x, None, None, 1e-5, torch.float32)
geglu.geglu(x)
bias_residual.bias_residual(x, None, x)
linear_geglu.linear_geglu(x, torch.randn(4, 6), None)
weight = torch.randn(4, 3)
layer = lora_fuse.Layer(weight, weight.clone(), [lora_fuse.Pair(torch.randn(4, 2), torch.randn(2, 3), 1.0)])
lora_fuse.lora_fuse([layer])
assert not torch.equal(layer.live, layer.base)
"""


def test_everything_runs_without_triton() -> None:
    run(_WITHOUT_TRITON)


def test_import_and_use_on_a_cpu_leave_triton_alone() -> None:
    run(_WITHOUT_TRITON.replace('sys.modules["triton"] = None', "") + "assert 'triton' not in sys.modules")


def run(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
