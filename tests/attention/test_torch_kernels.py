"""torch's kernels are called by name as their schemas want it, and its switches are heeded, never set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from lib_accel.attention.backend import HALVES, Backend, attend, why_not
from lib_accel.attention.cudnn import CUDNN
from lib_accel.attention.efficient import EFFICIENT
from lib_accel.attention.flash import FLASH
from lib_accel.device import switches
from tests.attention.place import CASE, Record, gpu, tokens

OPERATIONS = {
    FLASH: "aten::_scaled_dot_product_flash_attention",
    EFFICIENT: "aten::_scaled_dot_product_efficient_attention",
    CUDNN: "aten::_scaled_dot_product_cudnn_attention",
}

_CUDA: Any = torch.backends.cuda

SWITCHES: dict[Backend, tuple[Callable[[], bool], Callable[[bool], None]]] = {
    FLASH: (_CUDA.flash_sdp_enabled, _CUDA.enable_flash_sdp),
    EFFICIENT: (_CUDA.mem_efficient_sdp_enabled, _CUDA.enable_mem_efficient_sdp),
    CUDNN: (_CUDA.cudnn_sdp_enabled, _CUDA.enable_cudnn_sdp),
}

backends = pytest.mark.parametrize("backend", OPERATIONS, ids=lambda backend: backend.name)


@pytest.fixture(autouse=True)
def _switches_are_put_back() -> Iterator[None]:
    before = {backend: is_on() for backend, (is_on, _) in SWITCHES.items()}
    yield
    for backend, (_, switch) in SWITCHES.items():
        switch(before[backend])


@backends
@pytest.mark.parametrize(("width", "expected"), [(None, 40), (64, 64)])
def test_the_kernel_of_that_name_gets_heads_first_and_the_scale_of_the_head(
    backend: Backend, width: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gpu(monkeypatch), Record() as record:
        attend(backend, *tokens(8, 40, count=60, source=77), 8, width)
    ((args, options, _),) = [call[1:] for call in record.calls if call[0] == OPERATIONS[backend]]
    assert [tuple(tensor.shape) for tensor in args[:3]] == [(2, 8, n, expected) for n in (60, 77, 77)]
    assert options["scale"] == 40**-0.5


@backends
def test_the_call_has_no_mask_no_dropout_and_keeps_no_sums(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gpu(monkeypatch), Record() as record:
        attend(backend, *tokens(8, 40), 8)
    ((args, options, _),) = [call[1:] for call in record.calls if call[0] == OPERATIONS[backend]]
    assert not any(args[3:])
    assert not any(given for name, given in options.items() if name != "scale")


@backends
@pytest.mark.parametrize("width", [None, 64])
@pytest.mark.parametrize("dtype", HALVES)
def test_the_result_is_laid_out_as_the_query(
    backend: Backend, width: int | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gpu(monkeypatch):
        query, key, value = tokens(8, 40, count=63, source=77, dtype=dtype)
        result = attend(backend, query, key, value, 8, width)
        assert (result.shape, result.stride()) == (query.shape, query.stride())
        assert (result.dtype, result.device) == (dtype, query.device)


@backends
def test_nothing_is_copied_around_a_kernel_that_gives_tokens_first(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gpu(monkeypatch), Record() as record:
        attend(backend, *tokens(8, 40), 8)
    copies = {"aten::clone", "aten::copy_", "aten::_to_copy", "aten::constant_pad_nd"}
    assert not copies & {call[0] for call in record.calls}


@backends
def test_a_kernel_that_is_switched_off_is_not_taken(backend: Backend) -> None:
    SWITCHES[backend][1](False)
    assert "switch" in why_not(backend, CASE)[0]
    assert not any(why_not(other, CASE) for other in OPERATIONS if other is not backend)


@backends
def test_switches_are_the_same_while_a_kernel_runs(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    before = switches()
    with gpu(monkeypatch), Record() as record:
        attend(backend, *tokens(8, 40), 8)
    assert {call[3] for call in record.calls} == {before}


@pytest.mark.parametrize(
    ("backend", "largest"), [(FLASH, 256), (CUDNN, 128), (EFFICIENT, 65536)], ids=lambda each: str(each)[:20]
)
def test_heads_are_taken_up_to_the_kernels_limit(backend: Backend, largest: int) -> None:
    assert not why_not(backend, CASE._replace(size=largest))
    assert f"heads of {largest + 8}" in why_not(backend, CASE._replace(size=largest + 8))[0]


@pytest.mark.parametrize(("version", "is_taken"), [("2.1.2+cu121", False), ("2.2.0", True)])
def test_flash_takes_large_heads_since_its_second_version(
    version: str, is_taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    assert (not why_not(FLASH, CASE._replace(size=160))) is is_taken
    assert not why_not(FLASH, CASE._replace(size=128))


@pytest.mark.parametrize(("version", "is_taken"), [("2.1.2", False), ("2.5.1+cu124", False), ("2.6.0", True)])
def test_cudnn_is_taken_from_the_version_on_that_gave_no_nan(
    version: str, is_taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    assert (not why_not(CUDNN, CASE)) is is_taken


def test_an_older_torch_without_cudnns_switch_is_not_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.1.2")
    monkeypatch.delattr(torch.backends.cuda, "cudnn_sdp_enabled")
    assert why_not(CUDNN, CASE) == ("torch 2.1.2 is older than 2.6",)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"source": 1}, "one key"), ({"batch": 2**16}, "batch"), ({"heads": 2**16}, "heads")],
)
def test_cudnn_says_what_it_cannot_take(changed: dict[str, int], reason: str) -> None:
    assert reason in why_not(CUDNN, CASE._replace(**changed))[0]


def test_cudnn_is_not_taken_where_it_is_to_be_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    assert "deterministic" in why_not(CUDNN, CASE)[0]


@pytest.mark.parametrize(
    ("backend", "oldest", "older"),
    [(FLASH, (8, 0), (7, 5)), (CUDNN, (8, 0), (7, 5)), (EFFICIENT, (5, 0), (3, 7))],
)
def test_older_gpus_are_not_asked(backend: Backend, oldest: tuple[int, int], older: tuple[int, int]) -> None:
    assert not why_not(backend, CASE._replace(capability=oldest))
    assert why_not(backend, CASE._replace(capability=older))


def test_only_the_efficient_kernel_takes_float32() -> None:
    case = CASE._replace(dtype=torch.float32)
    assert [backend for backend in OPERATIONS if not why_not(backend, case)] == [EFFICIENT]
