"""Autocast is read as it is on this thread, and is afterwards what it was before."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lib_accel.device import allows_tf32, autocast_dtype, autocast_off, autocast_on, switches

BF16, F16 = torch.bfloat16, torch.float16


def product_dtype(device: str = "cpu") -> torch.dtype:
    x = torch.ones(2, 2, device=device)
    return torch.mm(x, x).dtype


class NewerWay:
    """A backend of torch 2.9 or newer whose precision was set in the newer way."""

    def __init__(self, precision: str) -> None:
        self.fp32_precision = precision

    @property
    def allow_tf32(self) -> bool:
        raise RuntimeError("mix of the legacy and new APIs")


@pytest.mark.parametrize(("precision", "allows"), [("tf32", True), ("ieee", False)])
def test_a_precision_that_was_set_in_the_newer_way_is_read_in_it(precision: str, allows: bool) -> None:
    assert allows_tf32(NewerWay(precision)) is allows


@pytest.mark.parametrize("allows", [True, False])
def test_whether_products_may_round_is_read(monkeypatch: pytest.MonkeyPatch, allows: bool) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allows)
    assert allows_tf32(torch.backends.cudnn) is allows
    assert switches()[2] is allows


def test_without_autocast_there_is_no_dtype() -> None:
    assert autocast_dtype("cpu") is None
    assert autocast_dtype("cuda") is None


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_dtype_of_the_hosts_autocast_is_found(dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=dtype):
        assert autocast_dtype("cpu") is dtype


def test_autocast_of_one_device_is_not_that_of_another() -> None:
    with torch.autocast("cpu", dtype=BF16):
        assert autocast_dtype("cuda") is None


def test_disabled_autocast_has_no_dtype() -> None:
    with torch.autocast("cpu", dtype=BF16), torch.autocast("cpu", enabled=False):
        assert autocast_dtype("cpu") is None


def test_autocast_is_off_inside_and_on_again_outside() -> None:
    with torch.autocast("cpu", dtype=BF16):
        with autocast_off("cpu"):
            assert product_dtype() is torch.float32
        assert autocast_dtype("cpu") is BF16
        assert product_dtype() is BF16


def test_autocast_is_on_inside_and_off_again_outside() -> None:
    with autocast_on("cpu", BF16):
        assert product_dtype() is BF16
    assert autocast_dtype("cpu") is None
    assert product_dtype() is torch.float32


def test_nested_states_come_back_one_by_one() -> None:
    found = []
    with autocast_on("cpu", BF16):
        with autocast_off("cpu"):
            with autocast_on("cpu", F16):
                found.append(autocast_dtype("cpu"))
            found.append(autocast_dtype("cpu"))
        found.append(autocast_dtype("cpu"))
    assert found == [F16, None, BF16]


def test_state_comes_back_after_an_error() -> None:
    with torch.autocast("cpu", dtype=BF16):
        with pytest.raises(ZeroDivisionError), autocast_off("cpu"):
            raise ZeroDivisionError
        assert autocast_dtype("cpu") is BF16
    with pytest.raises(ZeroDivisionError), autocast_on("cpu", BF16):
        raise ZeroDivisionError
    assert autocast_dtype("cpu") is None


def test_default_dtype_of_autocast_is_left_alone() -> None:
    with torch.autocast("cpu"):
        before = autocast_dtype("cpu")
    with autocast_on("cpu", F16), autocast_off("cpu"):
        pass
    with torch.autocast("cpu"):
        assert autocast_dtype("cpu") is before


def test_autocast_of_another_thread_is_not_seen() -> None:
    with autocast_on("cpu", BF16), ThreadPoolExecutor(1) as other:
        assert other.submit(autocast_dtype, "cpu").result() is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_cuda_autocast_is_found_switched_off_and_put_back(dtype: torch.dtype) -> None:
    with torch.autocast("cuda", dtype=dtype):
        assert autocast_dtype("cuda") is dtype
        assert autocast_dtype("cpu") is None
        with autocast_off("cuda"):
            assert product_dtype("cuda") is torch.float32
        assert product_dtype("cuda") is dtype
