"""Calls of small functions as recordings: when they are made, what they give, what ends them."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_accel.graphs import launch
from lib_accel.graphs import replay as replays
from lib_accel.graphs.launch import Launches, Outcome, Terms, Work
from lib_accel.graphs.recorder import Recorder, TapeRecording
from lib_accel.graphs.verdicts import Verdicts

FORCED = Terms(2**30, True, 0)
AUTO = Terms(2**30, False, 0)


class Bench:
    """A module, what it computes, and the recordings of it."""

    def __init__(self, folder: Path | None = None) -> None:
        self.recorder = Recorder()
        self.launches = Launches({"cpu": self.recorder}, Verdicts(folder))
        self.module = nn.Linear(4, 4).requires_grad_(False)
        self.function: Callable[[Any], Any] = self.compute
        self.runs = 0
        self.ways_seen: list[str] = []

    def compute(self, given: Any) -> Any:
        self.runs += 1
        return given[0] @ self.module.weight + self.module.bias

    def run(
        self,
        given: Sequence[Any] | None = None,
        *,
        version: Hashable = 0,
        state: Hashable = 0,
        terms: Terms = FORCED,
        weights: Sequence[Any] | None = None,
    ) -> Outcome:
        own = [self.module.weight, self.module.bias, None] if weights is None else weights
        work = Work(self.module, self.function, drawn(1) if given is None else given, own, version, state)
        with torch.no_grad():
            return self.launches.run(work, terms)

    def way(self, given: Sequence[Any] | None = None, **options: Any) -> str:
        """How a call was computed, which is right in any case."""
        given = drawn(len(self.ways_seen)) if given is None else given
        outcome = self.run(given, **options)
        if outcome.is_done:
            with torch.no_grad():
                expected = self.function(given)
            assert torch.equal(outcome.result, expected)
        self.ways_seen.append(way_of(outcome))
        return self.ways_seen[-1]

    def ways(self, count: int, *args: Any, **options: Any) -> list[str]:
        """Of so many calls in turn, with other values each."""
        self.ways_seen = []
        return [self.way(*args, **options) for _ in range(count)]

    def warm(self, *args: Any, **options: Any) -> None:
        """Up to the call that records."""
        assert self.ways(2, *args, **options) == ["eager", "recorded"]

    @property
    def reasons(self) -> dict[str, int]:
        return dict(self.launches.report().reasons)


def way_of(outcome: Outcome) -> str:
    if outcome.is_done:
        return "replayed" if outcome.is_replayed else "recorded"
    return "never" if outcome.is_given_up else "eager"


def drawn(seed: int, rows: int = 3) -> tuple[Tensor]:
    return (torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed)),)


@pytest.fixture
def bench() -> Bench:
    return Bench()


# When a call is recorded


def test_the_first_use_is_the_callers_the_second_is_recorded_the_third_replayed(bench: Bench) -> None:
    assert bench.ways(5) == ["eager", "recorded", "replayed", "replayed", "replayed"]
    assert bench.launches.report().captures == 1


def test_a_replay_does_not_run_the_function(bench: Bench) -> None:
    bench.warm()
    before = bench.runs
    assert bench.run(drawn(7)).is_replayed
    assert bench.runs == before


@pytest.mark.parametrize(
    ("other", "options"),
    [
        (drawn(1, rows=5), {}),
        ((drawn(1)[0].T.contiguous().T,), {}),
        ((*drawn(1), 2.0), {}),
        ((*drawn(1), None), {}),
        (None, {"state": 1}),
    ],
    ids=["size", "strides", "number", "None", "state"],
)
def test_another_call_is_another_case(bench: Bench, other: Any, options: dict[str, Any]) -> None:
    bench.warm()
    assert bench.ways(3, other, **options) == ["eager", "recorded", "replayed"]
    assert bench.ways(1) == ["replayed"]
    assert bench.launches.report().graphs == 2


def test_another_dtype_is_another_case(bench: Bench) -> None:
    bench.function = lambda given: given[0] * 2
    bench.warm()
    assert bench.ways(3, (drawn(1)[0].double(),)) == ["eager", "recorded", "replayed"]


def test_another_number_of_the_same_value_is_another_case(bench: Bench) -> None:
    bench.function = lambda given: given[0] * given[1]
    bench.warm((*drawn(1), 2.0))
    assert bench.ways(1, (*drawn(1), 3.0)) == ["eager"]
    assert bench.ways(1, (*drawn(1), 2)) == ["eager"]


def test_the_same_call_of_another_module_is_another_case(bench: Bench) -> None:
    bench.warm()
    bench.module = nn.Linear(4, 4).requires_grad_(False)
    assert bench.ways(3) == ["eager", "recorded", "replayed"]


def test_a_new_version_drops_what_was_recorded(bench: Bench) -> None:
    bench.warm()
    assert bench.ways(1, version=1) == ["eager"]
    assert bench.launches.report().graphs == 0
    assert bench.ways(2, version=1) == ["recorded", "replayed"]
    assert bench.ways(1, version=0) == ["eager"]


# What a replay gives


def test_results_are_the_callers_to_keep_and_to_change(bench: Bench) -> None:
    bench.warm()
    results = [bench.run(drawn(seed)).result for seed in range(3)]
    with torch.no_grad():
        for seed, result in enumerate(results):
            assert torch.equal(result, bench.compute(drawn(seed)))
            result.fill_(1e6)
    assert bench.ways(2) == ["replayed", "replayed"]


def test_inputs_are_the_callers_to_change(bench: Bench) -> None:
    bench.warm()
    given = drawn(5)
    bench.run(given)
    given[0].fill_(1e6)
    assert bench.ways(2) == ["replayed", "replayed"]


def test_inputs_are_not_written(bench: Bench) -> None:
    given = drawn(5)
    for _ in range(4):
        bench.run(given)
    assert torch.equal(given[0], drawn(5)[0])


def test_a_result_that_is_an_input_is_a_copy(bench: Bench) -> None:
    bench.function = lambda given: (given[0], given[0] + 1)
    given = drawn(5)
    for _ in range(3):
        outcome = bench.run(given)
    outcome.result[0].fill_(1e6)
    assert torch.equal(given[0], drawn(5)[0])
    assert torch.equal(outcome.result[1], given[0] + 1)


def test_results_come_in_the_form_of_the_functions(bench: Bench) -> None:
    bench.function = lambda given: {"sample": given[0] * 2, "kept": [given[0] + 1, 0.5, None]}
    bench.run()
    bench.run()
    result = bench.run(drawn(3)).result
    assert list(result) == ["sample", "kept"]
    assert result["kept"][1:] == [0.5, None]
    assert torch.equal(result["kept"][0], drawn(3)[0] + 1)


def test_strided_inputs_are_replayed_by_their_values(bench: Bench) -> None:
    wide = torch.randn(3, 8)
    bench.warm((wide[:, ::2],))
    assert bench.ways(2, (wide[:, 1::2],)) == ["replayed", "replayed"]
    assert bench.ways(1, (torch.randn(1, 4).expand(3, 4),)) == ["replayed"]


def test_a_change_of_weights_in_place_is_seen_by_a_replay(bench: Bench) -> None:
    bench.warm()
    bench.module.weight.mul_(-3)
    bench.module.bias.add_(1)
    assert bench.ways(2) == ["replayed", "replayed"]


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("later", [torch.inference_mode, torch.no_grad])
def test_inference_mode_and_no_grad_share_recordings(bench: Bench, mode: Any, later: Any) -> None:
    with mode():
        bench.warm()
    with later():
        assert bench.ways(2, (torch.randn(3, 4),)) == ["replayed", "replayed"]
        assert bench.run((torch.randn(3, 4),)).result.is_inference() == torch.is_inference_mode_enabled()


def test_under_autocast_no_stale_copy_of_a_weight_is_read(bench: Bench) -> None:
    bench.module.requires_grad_(True)  # what autocast keeps copies of
    with torch.autocast("cpu", torch.bfloat16):
        bench.warm()
    with torch.no_grad():
        bench.module.weight.mul_(-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert bench.ways(2) == ["replayed", "replayed"]


def test_torchs_settings_are_the_same_inside_of_a_recording(bench: Bench) -> None:
    seen = []

    def look(given: Any) -> Tensor:
        seen.append(
            (torch.is_autocast_cache_enabled(), torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        )
        return given[0] + 1

    bench.function = look  # compiled code is looked up by them
    bench.run()
    bench.run()
    assert seen == [(True, False, False)] * 2


# What ends a recording


def moved(weight: Any) -> None:
    weight.data = weight.data.clone()


def test_weights_that_moved_are_recorded_anew(bench: Bench) -> None:
    bench.warm()
    moved(bench.module.weight)
    bench.module.weight.mul_(2)
    assert bench.ways(3) == ["eager", "recorded", "replayed"]
    assert bench.launches.report().captures == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda module: setattr(module, "weight", nn.Parameter(module.weight * 2, requires_grad=False)),
        lambda module: setattr(module.weight, "data", module.weight.data.T),
        lambda module: setattr(module.weight, "data", module.weight.data.clone()),
    ],
    ids=["another parameter", "a view", "other memory"],
)
def test_any_other_memory_of_a_weight_is_noticed(bench: Bench, change: Callable[[Any], None]) -> None:
    bench.warm()
    change(bench.module)
    assert bench.ways(1) == ["eager"]


def test_a_module_whose_weights_move_each_time_is_left_alone(bench: Bench) -> None:
    for _ in range(3):
        bench.ways(3)
        moved(bench.module.weight)
        bench.run()
    assert bench.ways(4) == ["never"] * 4
    assert (bench.launches.report().captures, bench.launches.report().graphs) == (3, 0)
    assert bench.reasons == {"its weights move between pictures": 1}


def test_a_module_whose_weights_move_seldom_is_recorded_again(bench: Bench) -> None:
    for _ in range(5):
        assert bench.ways(30).count("replayed") >= 28
        moved(bench.module.weight)


def test_one_move_of_weights_counts_once_however_many_sizes_were_recorded(bench: Bench) -> None:
    sizes = [drawn(1, rows) for rows in (1, 2, 3, 4)]
    for given in sizes:
        bench.warm(given)
    moved(bench.module.weight)
    assert [bench.ways(3, given)[-1] for given in sizes] == ["replayed"] * 4


def test_a_left_alone_module_gets_another_chance_in_another_version(bench: Bench) -> None:
    test_a_module_whose_weights_move_each_time_is_left_alone(bench)
    assert bench.ways(3, version=1) == ["eager", "recorded", "replayed"]


def test_released_recordings_are_made_again(bench: Bench) -> None:
    bench.warm()
    bench.launches.release()
    assert (bench.launches.report().graphs, bench.launches.report().mib) == (0, 0)
    assert bench.ways(2) == ["recorded", "replayed"]


def test_the_oldest_of_too_many_cases_is_forgotten(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_MOST_CASES", 2)
    for rows in (1, 2, 3):
        bench.warm(drawn(1, rows))
    assert bench.launches.report().graphs == 2
    assert bench.ways(1, drawn(1, 3)) == ["replayed"]
    assert bench.ways(1, drawn(1, 1)) == ["eager"]


# What is never recorded


def test_a_function_that_reads_what_was_replaced_is_found_out(bench: Bench) -> None:
    held = {"bias": torch.ones(4)}
    bench.function = lambda given: given[0] + held["bias"]
    bench.warm(weights=[held["bias"]])
    held["bias"] = torch.zeros(4)
    assert bench.ways(3, weights=[held["bias"]]) == ["eager", "recorded", "replayed"]


def test_what_no_recording_sees_is_found_out_by_the_trial(bench: Bench) -> None:
    elsewhere = torch.zeros(3, 4)

    def computing_elsewhere(given: Any) -> Tensor:
        elsewhere.numpy()[:] = 2 * given[0].numpy()
        return given[0] + elsewhere

    bench.function = computing_elsewhere
    assert [way_of(bench.run()) for _ in range(3)] == ["eager", "recorded", "never"]
    assert [reason.startswith("a replay differs by") for reason in bench.reasons] == [True]


def test_values_from_outside_the_inputs_are_found_out_by_the_trial(bench: Bench) -> None:
    numbers = iter(range(100))
    bench.function = lambda given: given[0] + next(numbers)
    assert [way_of(bench.run()) for _ in range(3)] == ["eager", "recorded", "never"]
    assert [reason.startswith("a replay differs by") for reason in bench.reasons] == [True]
    assert bench.launches.report().graphs == 0


def test_a_function_that_writes_its_input_is_not_recorded(bench: Bench) -> None:
    bench.function = lambda given: given[0].mul_(2) + 1
    assert [way_of(bench.run(drawn(1))) for _ in range(3)] == ["eager", "recorded", "never"]


def test_a_branch_that_depends_on_a_value_is_not_recorded(bench: Bench) -> None:
    bench.function = lambda given: given[0] * 2 if given[0].sum() > 0 else given[0]
    assert bench.ways(3) == ["eager", "recorded", "never"]
    assert list(bench.reasons) == ["_local_scalar_dense waits for the device"]


def test_a_result_of_another_form_is_not_recorded(bench: Bench) -> None:
    forms = iter([1, 2, 2, 2])
    bench.function = lambda given: (given[0] + 1,) * next(forms)
    assert [way_of(bench.run()) for _ in range(2)] == ["eager", "recorded"]
    assert way_of(bench.run()) == "never"
    assert list(bench.reasons) == ["its result has another form when it is recorded"]


@pytest.mark.parametrize("given", [(torch.ones(1), object()), (torch.ones(1), {1: 2})])
def test_what_cannot_be_told_apart_is_never_recorded(bench: Bench, given: Any) -> None:
    assert [way_of(bench.run(given)) for _ in range(3)] == ["never"] * 3
    assert bench.reasons == {f"called with a {type(given[1]).__name__}": 3}


def test_a_call_without_a_tensor_is_never_recorded(bench: Bench) -> None:
    bench.function = lambda given: torch.ones(2)
    assert way_of(bench.run((1, None))) == "never"


def test_tensors_on_several_devices_are_never_recorded(bench: Bench) -> None:
    given = (torch.ones(1), torch.ones(1, device="meta"))
    assert way_of(bench.run(given)) == "never"
    assert [("several devices" in reason) for reason in bench.reasons] == [True]


def test_after_an_error_of_the_function_the_call_is_the_callers(bench: Bench) -> None:
    def fail(given: Any) -> Any:
        raise ValueError("bad prompt")

    bench.run()
    bench.function = fail
    assert [way_of(bench.run()) for _ in range(4)] == ["eager", "eager", "eager", "never"]
    assert bench.reasons == {"ValueError: bad prompt": 1}


def test_after_memory_that_ended_in_the_function_it_is_tried_again(bench: Bench) -> None:
    def fail(given: Any) -> Any:
        raise MemoryError("full")

    bench.warm(state=1)
    bench.run()
    right, bench.function = bench.function, fail
    assert way_of(bench.run()) == "eager"
    assert bench.launches.report().graphs == 0
    bench.function = right
    assert bench.ways(2) == ["recorded", "replayed"]


def test_an_error_while_recording_is_told_and_the_result_is_there(bench: Bench) -> None:
    runs = []

    def fail_second(given: Any) -> Tensor:
        runs.append(1)
        if len(runs) == 2:
            raise ValueError("not now\nmore")
        return given[0] * 2

    bench.run()
    bench.function = fail_second
    outcome = bench.run(drawn(3))
    assert torch.equal(outcome.result, drawn(3)[0] * 2)
    assert bench.reasons == {"ValueError: not now": 1}
    assert way_of(bench.run()) == "never"


# Time


class Clock:
    """Takes so many seconds for what is launched kernel by kernel and for a replay."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, eager_s: float, replays_s: Any) -> None:
        self.now, times = 0.0, iter(replays_s)
        compute, replay = bench.compute, TapeRecording.replay

        def slow(given: Any) -> Any:
            self.now += eager_s
            return compute(given)

        def replayed(recording: TapeRecording) -> None:
            self.now += next(times)
            replay(recording)

        bench.function = slow
        monkeypatch.setattr(TapeRecording, "replay", replayed)
        for module in (launch, replays):
            monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.now))


# The first replay belongs to the trial; then it is timed.
def test_a_slower_replay_is_refused_with_both_times(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(bench, monkeypatch, 0.001, [1, 0.003, 0.002, 0.0015])
    assert bench.ways(3, terms=AUTO) == ["eager", "recorded", "never"]
    assert bench.reasons == {"a replay takes 1.50 ms, without it 1.00 ms": 1}
    assert bench.launches.report().graphs == 0


@pytest.mark.parametrize("replays_s", [[0.0009], [0.009, 0.009, 0.00104]])
def test_one_of_three_replays_that_is_as_fast_is_enough(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, replays_s: list[float]
) -> None:
    Clock(bench, monkeypatch, 0.001, [1, *replays_s, 1])
    assert bench.ways(3, terms=AUTO) == ["eager", "recorded", "replayed"]


def test_a_slower_replay_is_taken_if_it_is_forced(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(bench, monkeypatch, 0.001, [1.0] * 3)
    assert bench.ways(3, terms=FORCED) == ["eager", "recorded", "replayed"]


# Threads


def test_who_comes_second_computes_as_always(bench: Bench) -> None:
    bench.warm()
    outcomes = []
    with bench.recorder.turn(torch.device("cpu")) as is_ours:
        assert is_ours
        other = threading.Thread(target=lambda: outcomes.append(bench.run()))
        other.start()
        other.join()
        outcomes.append(bench.run())
    assert [way_of(each) for each in outcomes] == ["eager", "eager"]
    assert bench.reasons == {"another thread was launching a graph": 2}
    assert bench.ways(1) == ["replayed"]


@pytest.mark.parametrize("error", [RuntimeError("bad launch"), MemoryError("full")])
def test_a_replay_that_fails_leaves_the_call_to_the_caller(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    bench.warm()
    with monkeypatch.context() as patch:
        patch.setattr(TapeRecording, "replay", _raising(error))
        assert not bench.run().is_done
    assert bench.launches.report().graphs == 0
    is_passing = isinstance(error, MemoryError)
    assert bench.ways(2) == (["recorded", "replayed"] if is_passing else ["never", "never"])
    assert bench.ways(3, state=1) == ["eager", "recorded", "replayed"]  # the turn has ended


@pytest.mark.parametrize("what", ["release", "version"])
def test_what_another_thread_drops_meanwhile_spoils_no_replay(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    bench.warm()
    replay, is_inside, is_dropped = TapeRecording.replay, threading.Event(), threading.Event()

    def slowly(recording: TapeRecording) -> None:
        replay(recording)
        is_inside.set()
        is_dropped.wait(0.3)  # a drop that waits for its turn does not come before

    def drop() -> None:
        assert is_inside.wait(5)
        bench.launches.release() if what == "release" else bench.run(version=1)
        is_dropped.set()

    monkeypatch.setattr(TapeRecording, "replay", slowly)
    other = threading.Thread(target=drop)
    other.start()
    try:
        result = bench.run(drawn(3)).result
    finally:
        other.join()
    assert torch.equal(result, bench.compute(drawn(3)))


def test_threads_that_drop_and_record_do_not_wait_for_ever(bench: Bench) -> None:
    is_recording, may_end = threading.Event(), threading.Event()

    def slowly(given: Any) -> Tensor:
        is_recording.set()
        may_end.wait(5)
        return given[0] * 2

    def drop() -> None:
        bench.run(version=1)  # whose module is at work just now

    bench.warm(drawn(1, 9))
    bench.run()
    bench.function = slowly
    recording, dropping = (threading.Thread(target=each, daemon=True) for each in (bench.run, drop))
    recording.start()
    assert is_recording.wait(5)
    dropping.start()
    dropping.join(0.2)
    may_end.set()
    for each in (recording, dropping):
        each.join(5)
    assert [recording.is_alive(), dropping.is_alive()] == [False, False]


def test_threads_at_once_all_get_the_right_result(bench: Bench) -> None:
    wrong: list[int] = []

    def draw(rows: int) -> None:
        for seed in range(40):
            given = drawn(seed, rows)
            outcome = bench.run(given)
            if outcome.is_done and not torch.equal(outcome.result, bench.compute(given)):
                wrong.append(seed)

    threads = [threading.Thread(target=draw, args=(rows,)) for rows in (1, 2, 2, 3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert wrong == []
    assert bench.launches.report().replays > 0


# Memory


def size_of_one(bench: Bench) -> int:
    bench.warm()
    size = bench.launches.size_bytes
    bench.launches.release()
    return size


def test_size_is_that_of_memory_and_inputs(bench: Bench) -> None:
    bench.function = lambda given: given[0] * 2
    bench.warm()
    assert bench.launches.size_bytes == 2 * 3 * 4 * 4
    assert bench.launches.report().mib == 96 / 2**20


def test_what_is_too_large_by_itself_is_never_recorded_again(bench: Bench) -> None:
    terms = Terms(size_of_one(Bench()) - 1, True, 0)
    assert bench.ways(3, terms=terms) == ["eager", "recorded", "never"]
    assert bench.launches.report().graphs == 0
    assert list(bench.reasons) == ["its graph needs 0 MiB of 0 allowed"]


def test_the_launchers_own_limit_holds_too(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "largest_bytes", lambda self, device: 10)
    assert bench.ways(3) == ["eager", "recorded", "never"]


def test_what_does_not_fit_together_is_given_up_and_made_again(bench: Bench) -> None:
    terms = Terms(int(1.5 * size_of_one(Bench())), True, 0)
    bench.warm(terms=terms)
    bench.warm(state=1, terms=terms)
    report = bench.launches.report()
    assert (report.graphs, report.evicted, dict(report.reasons)) == (0, 2, {})
    assert bench.ways(2, terms=terms) == ["recorded", "replayed"]


def test_what_does_not_fit_together_is_not_recorded_for_ever(bench: Bench) -> None:
    terms = Terms(int(1.5 * size_of_one(Bench())), True, 0)
    for _ in range(50):
        for state in (0, 1):
            bench.run(state=state, terms=terms)
    assert bench.launches.report().captures <= 20


def test_the_longest_unused_of_too_many_recordings_is_given_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_MOST_RECORDINGS", 2)
    bench.warm(state="a")
    bench.warm(state="b")
    assert bench.ways(1, state="a") == ["replayed"]
    bench.warm(state="c")
    assert bench.launches.report().evicted == 1
    assert [bench.ways(1, state=state)[0] for state in "ac"] == ["replayed", "replayed"]
    assert bench.ways(1, state="b") == ["recorded"]


@pytest.mark.parametrize("error", [MemoryError("full"), torch.OutOfMemoryError("CUDA out of memory")])
def test_memory_that_ends_while_recording_frees_all_and_is_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    bench.warm(state="other")
    bench.run()
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "record", _raising(error))
        assert bench.ways(1) == ["recorded"]
    assert (bench.launches.report().graphs, bench.reasons) == (0, {})
    assert bench.ways(2) == ["recorded", "replayed"]


def _raising(error: Exception) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


def test_memory_that_ends_three_times_ends_the_trials(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "record", _raising(MemoryError("full")))
    assert bench.ways(5) == ["eager", "recorded", "recorded", "recorded", "never"]
    assert bench.reasons == {"no memory for its graph": 1}


def test_a_freed_module_frees_its_recordings(bench: Bench) -> None:
    bench.warm()
    gone = [weakref.ref(bench.module), *map(weakref.ref, bench.recorder._recordings)]
    assert len(gone) == 2
    bench.module = nn.Linear(4, 4)
    gc.collect()
    assert [each() for each in gone] == [None, None]
    assert bench.launches.report().graphs == 0


def test_nothing_of_the_calls_is_kept(bench: Bench) -> None:
    class Call:
        """What a function closes over."""

    call, given = Call(), drawn(3)
    held = [weakref.ref(call), weakref.ref(given[0])]
    bench.function = lambda given, call=call: given[0] * 2
    results = [weakref.ref(bench.run(given).result) for _ in range(4) if bench.ways(1, given) != ["eager"]]
    bench.function, bench.ways_seen = bench.compute, []
    del call, given
    gc.collect()
    assert [each() for each in (*held, *results)] == [None] * (2 + len(results))


def test_a_dropped_recording_keeps_no_memory(bench: Bench) -> None:
    bench.warm()
    (recording,) = bench.recorder._recordings
    memory = [weakref.ref(each) for each in (*recording.outputs, *recording.memory)]
    gone = weakref.ref(recording)
    del recording
    bench.launches.release()
    gc.collect()
    assert [each() for each in (gone, *memory)] == [None] * (1 + len(memory))


# The report


def test_the_report_counts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.ways(5)
    bench.launches.note("too large")
    bench.launches.note("too large")
    report = bench.launches.report()
    assert (report.graphs, report.captures, report.replays, report.evicted) == (1, 1, 3, 0)
    assert report.mib > 0
    assert report.capture_s > 0
    assert report.reasons == {"too large": 2}


def test_nothing_is_served_where_there_is_no_launcher_or_somebody_records(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench.launches.serves(torch.device("cpu"))
    assert not bench.launches.serves(torch.device("cuda", 0))
    monkeypatch.setattr(Recorder, "is_recording", lambda self, device: True)
    assert not bench.launches.serves(torch.device("cpu"))


# What ends the process


def test_what_ended_the_process_twice_is_not_tried_again(tmp_path: Path) -> None:
    for tries in (1, 2):
        _leave_trial(tmp_path, tries)
        bench = Bench(tmp_path)
        ways = bench.ways(3)
    assert ways == ["eager", "recorded", "never"]
    assert bench.reasons == {"the program ended twice while this was tried": 1}
    assert bench.launches.report().captures == 0


def test_what_ended_the_process_once_is_tried_again(tmp_path: Path) -> None:
    _leave_trial(tmp_path, 1)
    assert Bench(tmp_path).ways(3) == ["eager", "recorded", "replayed"]
    assert json.loads((tmp_path / "verdicts.json").read_text())["trials"] == {}


def _leave_trial(folder: Path, tries: int) -> None:
    """What a process leaves on disk that ends while it records."""
    names: list[str] = []
    bench = Bench(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Verdicts, "begin_trial", lambda self, name: names.append(name))
        bench.ways(2)
    gone = {"process": 2**22 + 1, "tries": tries}  # a number that no process has
    content = {"schema": 1, "verdicts": {}, "trials": {names[0]: gone}}
    folder.mkdir(exist_ok=True)
    (folder / "verdicts.json").write_text(json.dumps(content))


def test_a_trial_is_noted_on_disk_while_it_lasts_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    record = Recorder.record

    def looking(self: Recorder, *args: Any) -> Any:
        seen.append(len(json.loads((tmp_path / "verdicts.json").read_text())["trials"]))
        return record(self, *args)

    monkeypatch.setattr(Recorder, "record", looking)
    bench = Bench(tmp_path)
    bench.warm()
    bench.warm(drawn(1, 5))
    assert seen == [1, 0]


# Inputs that lie otherwise than their copies


def strided() -> tuple[Tensor]:
    return (torch.randn(3, 8, generator=torch.Generator().manual_seed(0))[:, ::2],)


def askew() -> tuple[Tensor]:
    """Memory that does not begin where a kernel reads 16 bytes at once."""
    whole = torch.randn(13, generator=torch.Generator().manual_seed(0))
    return (whole[1:].view(3, 4),)


@pytest.mark.parametrize(("given", "runs"), [(drawn(0), 2), (strided(), 3), (askew(), 3)], ids=range(3))
def test_what_lies_otherwise_runs_as_it_is_recorded_once_before(given: tuple[Tensor], runs: int) -> None:
    bench = Bench()
    bench.run(given)
    bench.runs = 0
    assert way_of(bench.run(given)) == "recorded"
    assert bench.runs == runs  # the call itself, as it is recorded, and that recorded
