"""All checks, in the order in which they are shown."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from lib_accel.doctor.facts import Machine
from lib_accel.doctor.judge_packages import judge_package, judge_xformers
from lib_accel.doctor.judge_surroundings import judge_cache, judge_compiler, judge_python, judge_webui
from lib_accel.doctor.judge_torch import judge_device, judge_direct, judge_torch, judge_triton
from lib_accel.doctor.verdict import Row, Verdict

Judge = Callable[[Machine], Verdict]

DIRECT = "code: direct"

_log = logging.getLogger(__name__)


def _not_in_this_version(instead: str) -> Judge:
    return lambda machine: Verdict("no", "not in this version", f"nothing: {instead} is used")


def _judge_eager(machine: Machine) -> Verdict:
    if machine.devices is None:
        return Verdict("no", "needs torch", "see the row torch")
    return Verdict("yes", "always")


CHECKS: Mapping[str, Judge] = {
    "Python": judge_python,
    "torch": judge_torch,
    "device": judge_device,
    DIRECT: judge_direct,
    "code: compiled": _not_in_this_version("direct"),
    "launch: eager": _judge_eager,
    "launch: graph": _not_in_this_version("eager"),
    "Triton": judge_triton,
    "C++ compiler": judge_compiler,
    "xformers": judge_xformers,
    **{
        name: judge_package(name)
        for name in ("diffusers", "transformers", "accelerate", "peft", "safetensors")
    },
    "cache folder": judge_cache,
    "webui": judge_webui,
}


def examine(machine: Machine, checks: Mapping[str, Judge] = CHECKS) -> list[Row]:
    """One row a check, whatever happens inside it."""
    return [Row(what, _verdict(judge, machine)) for what, judge in checks.items()]


def is_enough(rows: Sequence[Row]) -> bool:
    """Whether our minimum is there: direct code works, which takes a torch that can be imported."""
    return any(row.what == DIRECT and row.verdict.status == "yes" for row in rows)


def _verdict(judge: Judge, machine: Machine) -> Verdict:
    try:
        return judge(machine)
    except Exception as error:  # drivers and packages that are half there fail in ways that nobody lists
        _log.debug("a check failed", exc_info=True)
        message = " ".join(str(error).split())
        return Verdict(
            "no",
            f"could not be found out: {type(error).__name__}{f': {message}' if message else ''}",
            "please report what `python -m lib_accel doctor --report` prints",
        )
