"""The suite of GPUs: measures rows of its parts one after the other, whatever becomes of any of them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from lib_accel.bench.environment import gpu_clocks
from lib_accel.bench.gpu import parts
from lib_accel.bench.gpu.attention import mixing, sdpa
from lib_accel.bench.gpu.deadline import Overdue, deadline
from lib_accel.bench.gpu.file import DONE, FAILED, LEFT_OUT, OVERDUE, Figures, RowFile, row_name
from lib_accel.bench.gpu.kernels_rows import kernel_row, kernel_stand
from lib_accel.bench.gpu.kernels_tuning import tuning_row
from lib_accel.bench.gpu.models import ModelError, Where, import_packages
from lib_accel.bench.gpu.operators_rows import near_row, operator_row, operator_stand
from lib_accel.bench.gpu.parts import PARTS, Case
from lib_accel.bench.gpu.pieces_rows import pieces_row
from lib_accel.bench.gpu.profile import profile_row
from lib_accel.bench.gpu.rows import Stand, speed_row
from lib_accel.bench.gpu.sides import Makers, SideError
from lib_accel.bench.gpu.stage import staged
from lib_accel.bench.gpu.switches import switch_row
from lib_accel.bench.gpu.timing import Pace
from lib_accel.bench.gpu.warm_ups import warm_up_row
from lib_accel.errors import AccelError

_log = logging.getLogger(__name__)

_LONGEST_REASON = 300  # letters

# How a row is measured, by kind, on a stand of its case and with the name of its side.
KINDS: Mapping[str, Callable[[Any, str], Figures]] = MappingProxyType(
    {
        parts.SPEED: speed_row,
        parts.PROFILE: profile_row,
        parts.SWITCH: switch_row,
        parts.KERNELS: kernel_row,
        parts.TUNING: tuning_row,
        parts.OPERATORS: operator_row,
        parts.NEAR: near_row,
        parts.WARM_UP: warm_up_row,
        parts.PIECES: pieces_row,
    }
)


class LostError(AccelError):
    """The GPU takes no more work from this process."""


@dataclass(frozen=True)
class Plan:
    """Where rows are measured, how much of each, and how long the whole may take."""

    where: Where
    pace: Pace = Pace()  # noqa: RUF009 - a frozen value
    makers: Makers = Makers()  # noqa: RUF009 - a frozen value
    limit_s: float = 540.0  # after which no row is begun that might take longer
    row_s: float | None = None  # most that a row may take, if other than its part says


def gpu_suite(names: Sequence[str], plan: Plan, file: RowFile, tell: Callable[[str], object]) -> bool:
    """Measures what the file lacks of these parts; whether all of them are complete now.

    tell: hears of each row as it begins. Raises LostError if the GPU is lost to this process; another
    one can measure what is left.
    """
    import_packages()
    allowance = _Allowance(plan.limit_s)
    with mixing(sdpa):
        for name in names:
            if missing := missing_rows(name, file):
                with _compiled_anew(plan.where, is_cold=PARTS[name].is_cold):
                    is_whole = _measure(name, missing, plan, file, tell, allowance)
                file.note_clocks(name, gpu_clocks(plan.where.device))
                if not is_whole:
                    return False
    return True


class _Allowance:
    """The time of a command: its first row is begun in any case, others if they will be done in time."""

    def __init__(self, limit_s: float) -> None:
        self._ends_at, self._is_first = time.monotonic() + limit_s, True

    def has(self, row_s: float) -> bool:
        """Whether a row that may take so long may be begun, which it is then."""
        is_first, self._is_first = self._is_first, False
        return is_first or time.monotonic() + row_s <= self._ends_at


def missing_rows(name: str, file: RowFile) -> list[tuple[Case, str]]:
    """Those of a part that the file lacks."""
    rows = PARTS[name].rows()
    return [(case, side) for case, side in rows if row_name(name, case.name, side) not in file.rows]


def _measure(
    name: str,
    missing: Sequence[tuple[Case, str]],
    plan: Plan,
    file: RowFile,
    tell: Callable[[str], object],
    allowance: _Allowance,
) -> bool:
    part = PARTS[name]
    row_s = plan.row_s or part.row_s
    for case, rows in itertools.groupby(missing, key=lambda row: row[0]):
        with _Standing(case, part.kind, plan) as standing:
            for _, side in rows:
                if not allowance.has(row_s):
                    return False
                row = row_name(name, case.name, side)
                tell(row)
                file.begin(row)
                figures = _figures(lambda: KINDS[part.kind](standing.stand, side), row_s)  # noqa: B023 - called at once
                file.end(row, {"part": name, "case": case.name, "side": side, "kind": part.kind, **figures})
                _check(plan.where)
    return True


class _Standing(contextlib.ExitStack):
    """The stand of a case, made within the time of the first row that wants it."""

    def __init__(self, case: Case, kind: str, plan: Plan) -> None:
        super().__init__()
        self._case, self._plan = case, plan
        self._make = _STANDS.get(kind, _model_stand)

    @functools.cached_property
    def stand(self) -> Any:
        """The same one for all rows."""
        plan = self._plan
        return self.enter_context(self._make(self._case, plan.where, plan.pace, plan.makers))


@contextlib.contextmanager
def _model_stand(case: Case, where: Where, pace: Pace, makers: Makers) -> Iterator[Stand]:
    with staged(case, where) as stage:
        yield Stand(stage, pace, makers)


# Of kinds that call no model.
_STANDS: Mapping[str, Callable[..., contextlib.AbstractContextManager[Any]]] = MappingProxyType(
    {
        parts.KERNELS: kernel_stand,
        parts.TUNING: kernel_stand,
        **dict.fromkeys((parts.OPERATORS, parts.NEAR), operator_stand),
    }
)


def _figures(measure: Callable[[], Figures], row_s: float) -> Figures:
    """The row's figures, or why there are none."""
    began = time.monotonic()
    try:
        with deadline(row_s):
            figures = {"status": DONE, **measure()}
    except (SideError, ModelError) as error:
        figures = {"status": LEFT_OUT, "reason": _reason(error)}
    except Overdue as error:
        figures = {"status": OVERDUE, "reason": _reason(error)}
    except Exception as error:  # of any compiler, driver or package: the other rows are still wanted
        _log.exception("a row failed")
        figures = {"status": FAILED, "reason": f"{type(error).__name__}: {_reason(error)}"}
    return figures | {"took_s": time.monotonic() - began}


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:_LONGEST_REASON] if lines else type(error).__name__


def _check(where: Where) -> None:
    """Raises LostError where a kernel's fault has ended all work of this process on the GPU."""
    if where.device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(where.device)
        torch.zeros(1, device=where.device).item()
    except RuntimeError as error:
        raise LostError(
            f"the GPU takes no more work from this process ({_reason(error)}); the same command measures the "
            "rows that are left"
        ) from error


@contextlib.contextmanager
def _compiled_anew(where: Where, *, is_cold: bool) -> Iterator[None]:
    """On a GPU torch's compiler finds nothing in the block that it made before, if it `is_cold`."""
    if where.device.type != "cuda" or not is_cold:
        yield
        return
    from torch._inductor import utils

    fresh: Any = getattr(utils, "fresh_cache", None) or getattr(utils, "fresh_inductor_cache")  # noqa: B009
    with fresh():
        yield
