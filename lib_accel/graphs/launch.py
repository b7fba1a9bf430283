"""Calls that are replayed as one recording (on a GPU: a CUDA graph) instead of launched one by one.

A call is known by its module and by all that is not the values of its tensors. Its first use runs as always.
At the second it is recorded, replayed and held against what it gave before; from the third it is replayed.
Inputs are copied into the recording's memory and results out of it, so that callers may keep and change what
they get, whoever is replayed next. Weights are read where they lie: one that moved ends the recording.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lib_accel.device import OUT_OF_MEMORY
from lib_accel.errors import reason_of
from lib_accel.graphs.launcher import Launcher
from lib_accel.graphs.replay import Replay
from lib_accel.graphs.structure import digest
from lib_accel.graphs.trees import PLAIN, NotPlainError, Tree, flattened
from lib_accel.graphs.verdicts import Verdicts, surroundings
from lib_accel.report import LaunchReport

_log = logging.getLogger(__name__)

_MOST_RECORDINGS = 1024  # of an engine: besides its pool, each has memory of the driver's
_MOST_CASES = 32  # of a module
_POOREST = 8  # replays, below which a recording was not worth its making
_MOST_POOR = 3  # of those in turn, until it is left alone
_MOST_TRIES = 3  # of what failed, or found no memory: it may be otherwise next time
_NO_MEMORY = "no memory for its graph"
_MOVES = "its weights move between pictures"
_BUSY = "another thread was launching a graph"


class Work(NamedTuple):
    """A call that may be replayed."""

    module: nn.Module  # whose call it is
    function: Callable[[Any], Any]  # of `given`; its result is a tree of tensors too
    given: Any  # a tree of tensors; see trees
    weights: Sequence[Any]  # all that the function reads besides
    version: Hashable  # of what the function does; what was recorded of another is dropped
    state: Hashable  # all else that it depends on
    is_foreign: bool = False  # whether others' code is in the function, which may do what cannot be recorded


class Terms(NamedTuple):
    """On which calls are replayed."""

    budget_bytes: int  # of all recordings of an engine
    is_forced: bool  # whether one is replayed even where that gains nothing
    codes: int  # version of what choice.Choice says
    switches: tuple[bool, ...] = ()  # of torch's; see device.switches


class Outcome(NamedTuple):
    """What became of a call."""

    result: Any = None
    is_done: bool = False  # whether there is a result; if not, it is the caller's to compute
    is_replayed: bool = False  # whether that is a recording's
    is_given_up: bool = False  # whether it will never be otherwise


_LATER, _NEVER = Outcome(), Outcome(is_given_up=True)


class _Case:
    """What is known of one call."""

    __slots__ = ("poor", "ready", "reason", "replays", "tries", "used_at")

    def __init__(self) -> None:
        self.ready: Replay | None = None
        self.reason: str | None = None  # why it is never recorded
        self.replays = 0
        self.poor = 0  # recordings in turn that were too many
        self.tries = 0
        self.used_at = 0


class _Site:
    """The calls of one module."""

    def __init__(self, version: Hashable) -> None:
        self.version = version
        self.cases: dict[Hashable, _Case] = {}
        self.poor = 0
        self.is_watched = False  # whether others' code in it was seen to do nothing that cannot be recorded
        self.reason: str | None = None  # why none of its calls is recorded


class Launches:
    """The recordings of an engine. Calls may come from any thread; who comes second runs as always."""

    def __init__(self, launchers: Mapping[str, Launcher], verdicts: Verdicts) -> None:
        """`launchers` by type of device; `verdicts` see that what ended the process is not tried for ever."""
        self._launchers, self._verdicts = launchers, verdicts
        self._sites: WeakKeyDictionary[nn.Module, _Site] = WeakKeyDictionary()
        self._lock = threading.RLock()  # around what is known of modules; nothing is waited for inside
        self._work = threading.RLock()  # around recordings
        self._survived: set[str] = set()  # trials of this process
        self._uses = self._captures = self._replays = self._evicted = 0
        self._seconds = 0.0
        self._reasons: Counter[str] = Counter()  # of calls that no case is to blame for

    def serves(self, device: torch.device) -> bool:
        """Whether calls on that device can be replayed now."""
        launcher = self.launcher_of(device)
        return launcher is not None and launcher.fault() is None and not launcher.is_recording(device)

    def launcher_of(self, device: torch.device) -> Launcher | None:
        """What replays calls on that device, if anything does."""
        return self._launchers.get(device.type)

    def run(self, work: Work, terms: Terms) -> Outcome:
        """What the work's function gives, by whichever way, or why the caller is to call it."""
        site = self._site(work)
        if site.reason is not None:
            return _NEVER
        try:
            given = flattened(work.given)
        except NotPlainError as error:
            return self._kept_off_by(str(error))
        if len({each.device for each in given.tensors}) != 1:
            return self._kept_off_by("called without a tensor, or with tensors on several devices")
        device = given.tensors[0].device
        key = given.key, work.state
        case = site.cases.get(key)
        if case is None:
            self._meet(site, key)
            return _LATER
        if case.reason is not None:
            return _NEVER
        with self._turn(device) as is_ours:
            if not is_ours:
                self._reasons[_BUSY] += 1
                return _LATER
            if case.ready is not None and not case.ready.reads(work.weights):
                self._drop_moved(site)
                return _LATER
            self._uses += 1
            case.used_at = self._uses
            if case.ready is not None:
                return self._again(case, case.ready, given)
            return self._tried(site, case, work, given, terms)

    @contextlib.contextmanager
    def _turn(self, device: torch.device) -> Iterator[bool]:
        """As the launcher's turn; in the block nobody else drops a recording either."""
        if not self._work.acquire(blocking=False):
            yield False
            return
        try:
            with self._launchers[device.type].turn(device) as is_ours:
                yield is_ours
        finally:
            self._work.release()

    def _again(self, case: _Case, ready: Replay, given: Tree) -> Outcome:
        try:
            result = ready.run(given.tensors)
        except Exception as error:  # the caller goes the usual way
            if isinstance(error, OUT_OF_MEMORY):
                self.release()
                case.tries += 1
                case.reason = _NO_MEMORY if case.tries >= _MOST_TRIES else None
                return _LATER
            _log.exception("a replay failed; the call is launched kernel by kernel from now")
            case.reason = reason_of(error)
            self._drop(case)
            return _NEVER
        case.replays += 1
        self._replays += 1
        return Outcome(result, is_done=True, is_replayed=True)

    def note(self, reason: str) -> None:
        """Counts a call that was not brought here."""
        self._reasons[reason] += 1

    def _kept_off_by(self, reason: str) -> Outcome:
        self.note(reason)
        return _NEVER

    def _site(self, work: Work) -> _Site:
        with self._lock:
            before = self._sites.get(work.module)
            if before is not None and before.version == work.version:
                return before
            site = self._sites[work.module] = _Site(work.version)
        if before is not None:
            self._drop_all(before)
        return site

    def _meet(self, site: _Site, key: Hashable) -> None:
        """Makes a case, and forgets what was not used for longest where there are too many."""
        with self._lock:
            oldest = None
            if len(site.cases) >= _MOST_CASES:
                oldest = site.cases.pop(min(site.cases, key=lambda each: site.cases[each].used_at))
            site.cases[key] = _Case()
        if oldest is not None:
            self._drop(oldest)

    def _drop_moved(self, site: _Site) -> None:
        """To be recorded anew at the next call, as long as that pays."""
        most = max(each.replays for each in list(site.cases.values()))
        site.poor = site.poor + 1 if most < _POOREST else 0
        if site.poor >= _MOST_POOR:
            site.reason = _MOVES
        self._drop_all(site)

    # At the second use

    def _tried(self, site: _Site, case: _Case, work: Work, given: Tree, terms: Terms) -> Outcome:
        """The call's result, by its function; the next call is replayed if nothing speaks against it."""
        device = given.tensors[0].device
        launcher = self._launchers[device.type]
        launcher.wait(device)
        began = time.perf_counter()
        try:
            expected = work.function(work.given)
        except Exception as error:  # the caller goes the usual way, on which all errors are handled
            if isinstance(error, OUT_OF_MEMORY):
                self.release()
            case.tries += 1
            case.reason = reason_of(error) if case.tries >= _MOST_TRIES else None
            return _LATER
        launcher.wait(device)
        ended = time.perf_counter()
        usual_s = ended - began
        done = Outcome(expected, is_done=True)
        if any(type(each) not in PLAIN for each in work.weights if each is not None):
            case.reason = "its weights are of a class of their own"  # which do not say where they are
            return done
        name = digest(surroundings(device), "launch", type(work.module).__qualname__, work.state)
        crashed = self._verdicts.get(name)
        if crashed is not None:
            case.reason = crashed.reason
            return done
        with self._on_trial(name):
            try:
                is_watched = work.is_foreign and not site.is_watched
                case.ready = replay = Replay.of(
                    work.function, given, work.weights, launcher, is_watched=is_watched
                )
                site.is_watched = True
                self._captures += 1
                case.reason = replay.why_not(given, expected, usual_s, launcher, is_forced=terms.is_forced)
                self._keep_within(min(terms.budget_bytes, launcher.largest_bytes(device)), case)
            except OUT_OF_MEMORY:
                self.release()
                case.tries += 1
                case.reason = _NO_MEMORY if case.tries >= _MOST_TRIES else None
            except Exception as error:  # the call has its result; whatever it is, the next one can do without
                case.reason = reason_of(error)
                _log.info("%s is not recorded: %s", type(work.module).__name__, case.reason, exc_info=True)
        if case.reason is not None:
            self._drop(case)
        if launcher.fault() is not None:
            self.release()
        self._seconds += time.perf_counter() - ended
        return done

    @contextlib.contextmanager
    def _on_trial(self, name: str) -> Iterator[None]:
        """Leaves a sign in case the process ends; once, as it is written to disk and calls are many."""
        if name in self._survived:
            yield
            return
        self._verdicts.begin_trial(name)
        try:
            yield
        finally:
            self._verdicts.end_trial(name)
        self._survived.add(name)

    # Memory

    def _keep_within(self, budget_bytes: int, case: _Case) -> None:
        """Gives up what was not used for longest, or all if the newest recording, of `case`, is one too many.

        Recordings share one pool, which torch gives back as a whole: what one of them frees, only the next
        one can have. A newcomer that is too much time and again stays out, so that the others can stay.
        """
        ready = sorted(
            (each for each in self._cases() if each.ready is not None), key=lambda each: each.used_at
        )
        for each in ready[: max(0, len(ready) - _MOST_RECORDINGS)]:
            self._evict(each)
        if case.ready is None:
            return
        device = case.ready.device
        ready = [each for each in ready if each.ready is not None and each.ready.device == device]
        if sum(each.ready.size_bytes for each in ready if each.ready is not None) <= budget_bytes:
            return
        own_bytes = case.ready.size_bytes
        case.poor += 1
        if own_bytes > budget_bytes:
            case.reason = f"its graph needs {_mib(own_bytes)} MiB of {_mib(budget_bytes)} allowed"
        elif case.poor >= _MOST_POOR:
            case.reason = "its graph and others need more memory than is allowed"
        for each in ready:
            self._evict(each)

    def _evict(self, case: _Case) -> None:
        self._evicted += case.ready is not None
        self._drop(case)

    def release(self) -> None:
        """Drops all recordings; what is called again is recorded again."""
        with self._work:
            for case in self._cases():
                self._drop(case)

    def _drop_all(self, site: _Site) -> None:
        for case in list(site.cases.values()):
            self._drop(case)

    def _drop(self, case: _Case) -> None:
        with self._work:
            case.poor = 0 if case.replays >= _POOREST else case.poor
            ready, case.ready, case.replays = case.ready, None, 0
            if ready is not None:
                self._launchers[ready.device.type].wait(ready.device)  # a GPU may be at work with it
                ready.drop()

    def _cases(self) -> Iterator[_Case]:
        with self._lock:
            sites = list(self._sites.values())
        for site in sites:
            yield from list(site.cases.values())

    @property
    def size_bytes(self) -> int:
        """Of all recordings, with the memory of their inputs."""
        return sum(case.ready.size_bytes for case in self._cases() if case.ready is not None)

    def report(self) -> LaunchReport:
        """What is recorded, what was done with it, and why other calls are not."""
        cases = list(self._cases())
        reasons = Counter(dict(self._reasons)) + Counter(
            case.reason for case in cases if case.reason is not None
        )
        faults = (launcher.fault() for launcher in self._launchers.values())
        reasons += Counter(fault for fault in faults if fault is not None)
        with self._lock:
            reasons += Counter(site.reason for site in self._sites.values() if site.reason is not None)
        return LaunchReport(
            graphs=sum(case.ready is not None for case in cases),
            mib=self.size_bytes / 2**20,
            captures=self._captures,
            replays=self._replays,
            evicted=self._evicted,
            capture_s=self._seconds,
            reasons=dict(reasons),
        )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f}"
