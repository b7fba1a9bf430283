"""The models of the suite of graphs in half precision, as they are on a GPU, are called under autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lib_accel.bench.graphs_models import DIFFUSERS, PACKAGES, WIDTHS, Place
from lib_accel.bench.graphs_subjects import Picture, subject
from lib_accel.choice import Choice
from lib_accel.graphs.activity import Activity
from lib_accel.graphs.compiler import Compiler
from lib_accel.graphs.verdicts import Verdicts
from lib_accel.graphs.workshop import Workshop
from tests.bench.graphs import WIDTH
from tests.fakes.models import sgm_openaimodel


class _Seen(Exception):
    """The UNet was called; its norms take half precision on a GPU only."""


@pytest.mark.parametrize(("dtype", "is_on"), [(torch.float32, False), (torch.bfloat16, True)], ids=str)
@pytest.mark.parametrize("package", [each for each in PACKAGES if each != DIFFUSERS])
def test_webuis_classes_are_called_under_autocast_where_numbers_are_half(
    package: str, dtype: torch.dtype, is_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sgm_openaimodel()
    monkeypatch.setitem(WIDTHS, "toy", WIDTH)
    choice = Choice(Verdicts(None), Workshop(Compiler(), Activity(), helper=None))
    given: Any = subject(package, "toy", Place(torch.device("cpu"), dtype, 8), choice, code="direct")

    def look(*_: Any) -> None:
        raise _Seen(torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"))

    given._unets[0].register_forward_pre_hook(look)
    try:
        with given.as_stock(), pytest.raises(_Seen) as seen:
            given.call(Picture("plain", 8, 8))
    finally:
        given.close()
    assert seen.value.args[0] == is_on
    assert not is_on or seen.value.args[1] == dtype
