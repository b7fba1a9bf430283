"""Steps for what is measured: what computed a picture's operators, and what the status says. Ours only."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .outcome import Outcome
from .picture import Picture
from .session import Session

PATIENCE_S = 120.0
_TOLD = 5  # of the reasons for which contests were lost

# The server imports tests/host/tuned.py, and this file runs where there is no torch.
RIVAL, TORCH, PARTLY = "stand-in", "torch", "both"
OPERATORS = (
    "attention",
    "convolution, norm",
    "convolution, residual",
    "gated linear",
    "group norm",
    "layer norm",
    "linear, residual",
)

STAND_INS = """
import sys
from pathlib import Path
import lib_accel
from lib_accel import extension
home = str(Path(lib_accel.__file__).resolve().parents[1])
if home not in sys.path:
    sys.path.append(home)
from tests.host import tuned
"""
INSTALL = f"{STAND_INS}tuned.install(extension._engine)"
BEGIN_ANEW = f"{STAND_INS}tuned.begin_anew(extension._engine)"
_COUNT = f"{STAND_INS}tuned.ran.clear()"
_TELL = f"{STAND_INS}import json; print(json.dumps(tuned.ran))"


@dataclass(frozen=True)
class Computed:
    """Draw a picture, whose operators must be computed by RIVAL, by TORCH, or PARTLY by each."""

    picture: Picture
    by: str

    def run(self, session: Session) -> list[Outcome]:
        """Generate it and count."""
        if not session.ours:
            return [session.draw(self.picture)]
        session.client.run_code(_COUNT)
        outcome = session.draw(self.picture)
        told = session.client.run_code(_TELL)
        if not session.replays:  # which call nothing
            outcome.problems += miscomputed(json.loads(told), self.by)
        return [outcome]


def miscomputed(ran: Mapping[str, int], by: str) -> list[str]:
    """What is wrong with these counts of calls, by "who operator"."""
    calls = {who: sum(ran.get(f"{who} {name}", 0) for name in OPERATORS) for who in (RIVAL, TORCH)}
    told = f"{calls[RIVAL]} calls by {RIVAL}, {calls[TORCH]} by {TORCH}"
    if by == TORCH:
        return [told] if calls[RIVAL] or not calls[TORCH] else []
    if by == PARTLY:
        return [] if all(calls.values()) else [told]
    missing = [name for name in OPERATORS if not ran.get(f"{RIVAL} {name}")]
    problems = [f"none by {RIVAL}: {', '.join(missing)}"] if missing else []
    return problems + ([told] if calls[TORCH] else [])


@dataclass(frozen=True)
class Measured:
    """Wait until everything that was asked for is measured, while nobody draws; then look at the status.

    formats: beginnings of the names of models whose weights must lie channels last by now, and be packed.
    waits: whether something must be left to be measured at first.
    """

    label: str = "operators are measured"
    formats: Sequence[str] = ()
    waits: bool = True

    def run(self, session: Session) -> list[Outcome]:
        """Ask now and then."""
        outcome = Outcome(self.label)
        if not session.ours:
            return [outcome]
        deadline, tuning = time.monotonic() + PATIENCE_S, session.status()["tuning"]
        if self.waits and not tuning["pending"]:
            outcome.problems.append("there was nothing to measure")
        while tuning["pending"] and time.monotonic() < deadline:
            time.sleep(0.2)
            tuning = session.status()["tuning"]
        outcome.problems += mismeasured(tuning, self.formats)
        return [outcome]


def mismeasured(tuning: Mapping[str, Any], formats: Sequence[str]) -> list[str]:
    """What is wrong with this part of a status after everything should be measured."""
    problems = [f"{key}: {tuning[key]}" for key in ("fault", "pending", "refused") if tuning[key]]
    cases = tuning["cases"]
    won = {case["operator"] for case in cases if case["next_chosen"] == RIVAL}
    problems += [f"{name} is computed by {TORCH} only" for name in OPERATORS if name not in won]
    lost = [f"{case['operator']}: {case['reason']}" for case in cases if case["next_chosen"] != RIVAL]
    problems += sorted(set(lost))[:_TOLD]
    for name in formats:
        of_name = [each for each in tuning["formats"] if each["model"].startswith(name)]
        if not of_name or not all(each["is_channels_last"] for each in of_name):
            problems.append(f"{name}: {[each['reason'] for each in of_name] or 'no such model'}")
        apart = [
            each["packing_reason"] for each in of_name if not each["is_packed"] and each["packing_reason"]
        ]
        problems += [f"{name}: {reason}" for reason in apart]
    return problems


@dataclass(frozen=True)
class Held:
    """Wait until a contest is being held, so that what follows comes in between."""

    def run(self, session: Session) -> list[Outcome]:
        """Ask often."""
        outcome = Outcome("a contest is held")
        deadline = time.monotonic() + PATIENCE_S
        while session.ours and session.status()["tuning"]["holding"] is None:
            if time.monotonic() > deadline:
                outcome.problems.append(f"none was held within {PATIENCE_S:.0f} s")
                break
            time.sleep(0.02)
        return [outcome]


@dataclass(frozen=True)
class Left:
    """Whether contests are left to be held."""

    def run(self, session: Session) -> list[Outcome]:
        """Look."""
        outcome = Outcome("contests are left")
        if session.ours and not session.status()["tuning"]["pending"]:
            outcome.problems.append("all were held")
        return [outcome]


@dataclass(frozen=True)
class Forgotten:
    """Forget what was measured, which must have been something unless `least` is 0."""

    least: int = 1

    def run(self, session: Session) -> list[Outcome]:
        """Call the route."""
        outcome = Outcome("DELETE /accel/v1/cache")
        if session.ours:
            count = session.client.call("/accel/v1/cache", method="DELETE")["choices"]
            if count < self.least:
                outcome.problems.append(f"{count} choices were forgotten")
        return [outcome]
