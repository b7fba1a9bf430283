"""All back ends that compute the same as torch's attention, and which of them fit a call."""

from __future__ import annotations

from collections.abc import Iterator

from lib_accel.attention.backend import Backend, why_not, widths
from lib_accel.attention.case import Case
from lib_accel.attention.cudnn import CUDNN
from lib_accel.attention.efficient import EFFICIENT
from lib_accel.attention.flash import FLASH
from lib_accel.attention.xformers import XFORMERS

# In the order in which they are offered.
BACKENDS = (FLASH, CUDNN, EFFICIENT, XFORMERS)


def fitting(case: Case) -> Iterator[tuple[Backend, int | None]]:
    """Back ends that can take the case, each as it is and with heads filled up to that many values."""
    for backend in BACKENDS:
        if not why_not(backend, case):
            yield backend, None
        for width in widths(backend, case.size):
            if not why_not(backend, case.widened(width)):
                yield backend, width
