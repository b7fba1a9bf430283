"""Which implementation each operator of an engine takes: noted at calls, found out elsewhere, applied."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from lib_accel.blocks.operators.operator import Arguments, Operator
from lib_accel.graphs.activity import Activity
from lib_accel.graphs.proof import Verdict
from lib_accel.graphs.structure import digest
from lib_accel.graphs.verdicts import Verdicts, surroundings
from lib_accel.report import TuningCase, TuningReport
from lib_accel.requirements import installed_version
from lib_accel.tuning.begun import Begun
from lib_accel.tuning.choices import Choices, Met
from lib_accel.tuning.contest import TORCH
from lib_accel.tuning.contests import Contests, Job, contests_of_this_process
from lib_accel.tuning.process import End
from lib_accel.tuning.settings import Settings
from lib_accel.tuning.shipped import Kind, Told, Where
from lib_accel.tuning.signature import Call, call_of, device_of, size_class
from lib_accel.tuning.worker import Answer, Contest

_TABLE = "lib_accel.tuning.table:OPERATORS"
_DEVICES = ("cuda",)
_MOST_CASES = 1000  # that are measured in one process: each takes a second or more


class _Place(NamedTuple):
    """What choices hold for."""

    device: torch.device
    is_launched: bool  # by recordings, where calls are replayed
    settings: Settings


class _Case(NamedTuple):
    """Calls of a size class at a place, by the one that was met first."""

    place: _Place
    call: Call
    kind: Kind


class Tuner:
    """The choices of an engine. Calls may come from any thread."""

    def __init__(
        self,
        verdicts: Verdicts,
        activity: Activity,
        is_busy: Callable[[], bool],
        launches: Callable[[torch.device], bool],
        *,
        contests: Contests | None = None,
        table: str = _TABLE,
        devices: Collection[str] = _DEVICES,
        winners: Path | None = None,
    ) -> None:
        """`is_busy`: whether somebody is drawing, even if no model is called right now.

        launches: whether calls on a device are replayed. contests: None for those of this process. table: of
        the operators, as "module:NAME". devices: types of those where operators have a choice. winners: the
        folder of shipped ones; None for the package's own.
        """
        self._begun = Begun(verdicts, winners)
        self._verdicts, self._activity, self._is_busy = verdicts, activity, is_busy
        self._launches, self._table, self._devices = launches, table, devices
        self._contests = contests or contests_of_this_process()
        self._choices: dict[_Place, Choices] = {}
        self._prefixes: dict[_Place, str] = {}
        self._cases: dict[str, _Case] = {}  # by the name of the verdict
        self._wished: set[str] = set()
        self._left: dict[str, Verdict] = {}  # at plain torch, in this process
        self._failed: set[str] = set()  # of those, what failed when it ran
        self._version = 0
        self._is_stale = False  # whether something was found out since `apply`
        self._lock = threading.RLock()

    # At calls

    @property
    def version(self) -> int:
        """A number that changes with the choices that hold, save those of calls that are never replayed."""
        return self._version

    def tuned(self, device: torch.device, *, is_replayed: bool = True) -> Choices | None:
        """The choices that hold on a device, the same object as long as they do; None if there is none.

        is_replayed: False for calls that never are, also where others are.
        """
        if device.type not in self._devices:
            return None
        place = self._place(device)
        if not is_replayed:
            place = place._replace(is_launched=False)
        try:
            return self._choices[place]
        except KeyError:
            return self._first(place)

    def note(self, operator: Operator, args: Arguments) -> None:
        """Wishes for a contest of such calls, without taking part in any choice now."""
        if (place := self._place_of(args)) is not None:
            self._meet(place, operator, args)

    def verdict(self, operator: Operator, args: Arguments) -> Verdict | None:
        """What was found out of such calls, if anything was, in effect or not."""
        place = self._place_of(args)
        met = None if place is None else self._met(place, operator, args, call_of(operator, args))
        return None if met is None else self._known(met.name)

    def _place_of(self, args: Arguments) -> _Place | None:
        device = device_of(args)
        return self._place(device) if device.type in self._devices else None

    def _place(self, device: torch.device) -> _Place:
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        return _Place(device, self._launches(device), Settings.now())

    def _first(self, place: _Place) -> Choices:
        with self._lock:
            if place not in self._choices:
                self._choices[place] = self._choices_now(place)
            return self._choices[place]

    def _choices_now(self, place: _Place) -> Choices:
        kept = self._verdicts.beginning(self._prefix(place))
        found = {name: self._left.get(name, verdict).code for name, verdict in kept.items()}
        winners = {name: code for name, code in found.items() if code != TORCH}
        origin = sorted(self._shipped(place).items()) or None
        return Choices(winners, partial(self._meet, place), self._fail, origin)

    def _shipped(self, place: _Place) -> Mapping[Kind, str]:
        return self._begun.codes(self._prefix(place), lambda: Where.here(*place))

    def _is_undecided(self, name: str) -> bool:
        """Whether this machine says nothing of it, so that what is shipped holds."""
        is_known = self._verdicts.get(name, codes=None, usual=TORCH) is not None
        return not is_known and name not in self._failed

    def _prefix(self, place: _Place) -> str:
        """Of the names of verdicts that hold there, in every process."""
        with self._lock:
            if place not in self._prefixes:
                where = (surroundings(place.device), installed_version("xformers"), *place[1:])
                self._prefixes[place] = f"operator {digest(*where)} "
            return self._prefixes[place]

    def _meet(self, place: _Place, operator: Operator, args: Arguments) -> Met | None:
        """What a call is; wishes for its contest if nothing is known of it."""
        call = call_of(operator, args)
        met = self._met(place, operator, args, call)
        if met is not None:
            if met.shipped in met.others:
                self._begun.begin(self._prefix(place))
            self._wish(met.name, _Case(place, call, Kind(operator.name, size_class(operator, call))))
        return met

    def _met(self, place: _Place, operator: Operator, args: Arguments, call: Call) -> Met | None:
        others = {other.name: other for other in operator.others(*args)}
        if not others:
            return None
        kind = Kind(operator.name, size_class(operator, call))
        # Which are offered counts, and not in which order: tables of tiles change that.
        name = self._prefix(place) + digest(*kind, tuple(sorted(others)))
        return Met(name, others, self._shipped(place).get(kind) if self._is_undecided(name) else None)

    def _known(self, name: str) -> Verdict | None:
        return self._left.get(name) or self._verdicts.get(name, codes=None, usual=TORCH)

    # Contests

    def _wish(self, name: str, case: _Case) -> None:
        with self._lock:
            if name not in self._cases and len(self._cases) >= _MOST_CASES:
                return
            self._cases.setdefault(name, case)
            if name in self._wished or self._contests.fault is not None or self._known(name) is not None:
                return
            self._wished.add(name)
        place = case.place
        contest = Contest(self._table, case.call, place.is_launched, place.settings)
        self._contests.submit(Job(self, contest, self._may_run, partial(self._done, name)))

    def _may_run(self) -> bool:
        may_run = self._activity.is_idle() and not self._is_busy()
        if may_run:
            self._begun.end()
        return may_run

    def _done(self, name: str, found: Answer | End) -> bool:
        """Keeps what a contest has shown; whether it is to be held once more."""
        if isinstance(found, End):
            if not found.is_ours:
                self._verdicts.lose_trial(name)
            if self._known(name) is None:
                return True
        elif name in self._wished:  # else it was forgotten meanwhile
            if found.is_kept:
                case = self._cases[name]
                self._verdicts.put(name, Told.of(found.verdict, Where.here(*case.place), case.kind))
            else:
                self._left[name] = found.verdict
        with self._lock:
            self._wished.discard(name)
            self._is_stale = True
        return False

    def _fail(self, name: str, reason: str) -> None:
        """In this process only: it may be somebody else's error that came to light there."""
        with self._lock:
            self._left[name] = Verdict(TORCH, reason)
            self._failed.add(name)
            self._is_stale = True

    # Between pictures

    def apply(self) -> None:
        """Puts what was found out into effect; not while a picture is made."""
        self._begun.end()
        with self._lock:
            if not self._is_stale:
                return
            self._is_stale = False
            for place, before in self._choices.items():
                now = self._choices_now(place)
                begun = {name: code for name, code in [*before.shipped.items()] if self._is_undecided(name)}
                if {**begun, **now.winners} != {**before.shipped, **before.winners}:
                    self._choices[place] = now
                    self._version += place.is_launched or not self._launches(place.device)

    @property
    def pending(self) -> int:
        """How many contests are still to be held."""
        return self._contests.pending(self)

    def finish(self, timeout_s: float | None = None, tell: Callable[[int], None] | None = None) -> bool:
        """Has all contests held now that are wished for; see Contests.finish."""
        return self._contests.finish(self, timeout_s, tell)

    def cancel(self) -> None:
        """Forgets the contests that are wished for, until a call asks for them again."""
        self._contests.cancel(self)
        with self._lock:
            self._wished.clear()
            for choices in self._choices.values():
                choices.forget()

    def clear(self) -> int:
        """Forgets all that was found out, here and on disk; returns how many verdicts there were.

        What holds goes on until `apply`.
        """
        self.cancel()
        with self._lock:
            self._cases.clear()
            self._left.clear()
            self._failed.clear()
            self._begun.forget()
            self._is_stale = True
            return self._verdicts.clear()

    def report(self) -> TuningReport:
        """What each size class of each operator takes, and why."""
        with self._lock:
            cases = [self._reported(name, case) for name, case in self._cases.items()]
        contests = self._contests
        return TuningReport(cases, self.pending, contests.holding, contests.seconds, contests.fault)

    def _reported(self, name: str, case: _Case) -> TuningCase:
        verdict = self._known(name) or Verdict(TORCH, self._contests.fault or "to be measured")
        choices = self._choices.get(case.place)
        if choices is not None and name in choices.shipped and self._is_undecided(name):
            verdict = Verdict(choices.shipped[name], f"measured on another such GPU; here: {verdict.reason}")
        difference, form = verdict.difference, case.call.forms[0]
        return TuningCase(
            operator=case.call.operator,
            size=case.call.size,
            dtype=str(form.dtype).removeprefix("torch."),
            device=form.device,
            chosen=TORCH if choices is None else choices.code(name),
            next_chosen=verdict.code,
            reason=verdict.reason,
            difference=difference
            if difference is None or math.isfinite(difference)
            else None,  # as JSON has it
            tolerance=verdict.tolerance,
            ms=dict(verdict.ms),
        )
