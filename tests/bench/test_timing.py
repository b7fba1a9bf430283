"""The order of turns, and what counts of a run; no test looks at a time itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lib_accel.bench.timing import ACCELERATED, STOCK, Clock, Run, in_turn, run_of, time_ms, turns

CPU = torch.device("cpu")


class Sides:
    """Two sides whose runs are numbered, and the order in which they were asked."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def side(self, name: str) -> Callable[[], Run]:
        def run() -> Run:
            self.order.append(name)
            return Run(first_ms=0.0, step_ms=float(len(self.order)))

        return run

    def both(self) -> dict[str, Callable[[], Run]]:
        return {name: self.side(name) for name in (STOCK, ACCELERATED)}


def test_neither_side_goes_first_twice_in_a_row() -> None:
    assert turns(3) == [STOCK, ACCELERATED, ACCELERATED, STOCK, STOCK, ACCELERATED]


def test_each_side_has_as_many_turns_as_there_are_pairs() -> None:
    assert sorted(turns(15)) == [ACCELERATED] * 15 + [STOCK] * 15


def test_both_sides_are_warmed_before_the_first_pair() -> None:
    sides = Sides()
    in_turn(sides.both(), 2)
    assert sides.order == [ACCELERATED, STOCK, *turns(2)]


def test_a_shorter_warm_up_takes_the_place_of_a_run() -> None:
    sides, warmed = Sides(), list[str]()
    in_turn(sides.both(), 1, warm=warmed.append)
    assert (warmed, sides.order) == ([ACCELERATED, STOCK], [STOCK, ACCELERATED])


def test_runs_to_warm_up_do_not_count() -> None:
    runs = in_turn(Sides().both(), 2)
    assert [run.step_ms for run in runs[STOCK]] == [3.0, 6.0]
    assert [run.step_ms for run in runs[ACCELERATED]] == [4.0, 5.0]


def test_the_first_step_is_left_out_of_the_time_of_a_step() -> None:
    run = run_of([1.0, 2.0, 2.5, 2.75, 3.75])
    assert (run.first_ms, run.step_ms) == (1000, 500)


@pytest.mark.parametrize("ends_s", [[], [1.0], [1.0, 2.0]])
def test_a_run_of_fewer_than_two_steps_is_refused(ends_s: list[float]) -> None:
    with pytest.raises(ValueError, match="expected 2 or more"):
        run_of(ends_s)


def test_a_clock_counts_the_steps_of_a_pipeline_and_changes_nothing_in_them() -> None:
    clock = Clock(CPU)
    assert clock.on_step_end(None, 0, None, {"latents": torch.ones(1)}) == {}
    assert clock.steps == 1


def test_a_call_is_made_once_to_be_timed() -> None:
    calls: list[int] = []
    time_ms(lambda: calls.append(1), CPU)
    assert calls == [1]
