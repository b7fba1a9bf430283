"""Two graphs for blocks whose operators have winners: each is made when it is time, the faster one runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.blocks.operators import custom
from lib_accel.blocks.operators.gated_linear import GATED_LINEAR
from lib_accel.blocks.operators.operator import Implementation
from lib_accel.blocks.operators.whole import Whole
from lib_accel.blocks.rules import Rules
from lib_accel.choice import Block, Choice
from lib_accel.errors import CompileError
from lib_accel.graphs.activity import Activity
from lib_accel.graphs.compiler import Compiler, Graph
from lib_accel.graphs.proof import COMPILED, DIRECT, WITH_KERNELS
from lib_accel.graphs.verdicts import Verdicts
from lib_accel.graphs.worker import Part
from lib_accel.graphs.workshop import Workshop
from lib_accel.report import CaseReport
from tests.fakes.models import difference, inputs, run
from tests.fakes.tuning import FakeTuner, Taking
from tests.graphs.small import calls
from tests.graphs.small import transformer as small_transformer
from tests.test_choice import SMALL, SMALL_STRUCTURES, Studio, as_traced, chosen_freely, small_unet, stock
from tests.test_equality import LIMIT

GATED = "gated linear"


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    """One for all tests."""
    return Compiler(as_traced)


class Winner(Taking):
    """Takes gated linear layers by an implementation of this name, which counts its runs."""

    def __init__(self, name: str = "quick") -> None:
        super().__init__(GATED, self._run)
        self._implementation = Implementation(name, self._run)
        self.runs = 0
        self.fails = False

    def _run(self, *args: Any) -> Tensor:
        self.runs += 1
        if self.fails:
            raise RuntimeError("no such kernel")
        return GATED_LINEAR.plain(*args)


class Made:
    """A compiler that notes which operators graphs leave whole; they are shared, as to trace takes long."""

    def __init__(self, shared: Compiler) -> None:
        self.graphs: list[tuple[str, ...]] = []
        self.replacing: Callable[[Part], Graph] | None = None  # what makes graphs that leave operators whole
        self._shared = shared
        self.counters = shared.counters

    def prepare(self, *part: Any) -> Graph:
        tuned = Part(*part).condition.rules.tuned
        self.graphs.append(tuned.names if isinstance(tuned, Whole) else ())
        if isinstance(tuned, Whole) and self.replacing is not None:
            return self.replacing(Part(*part))
        return self._shared.prepare(*part)


@pytest.fixture
def made(compiler: Compiler) -> Made:
    return Made(compiler)


Open = Callable[..., Studio]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Studios whose gated linear layers have a winner, and which find `fast` to be the fastest."""
    studios: list[Studio] = []

    def open_one(made: Any, fast: str | None = None, **settings: Any) -> Studio:
        for each in studios:
            each.engine.detach()
        if not studios:
            chosen_freely(monkeypatch, fast=fast)
        tuner = settings.pop("tuner", None) or FakeTuner(Winner())
        studio = Studio(made, tuner=tuner, **{"code": "measured", **settings})
        studios.append(studio)
        studio.engine.attach()
        return studio

    yield open_one
    for each in studios:
        each.engine.detach()


def transformer(studio: Studio) -> CaseReport:
    """The one case whose block has gated linear layers."""
    (case,) = (case for case in studio.cases() if case.block.startswith("transformer"))
    return case


@pytest.mark.parametrize("fast", [WITH_KERNELS, COMPILED, DIRECT])
def test_the_fastest_code_runs(opened: Open, made: Made, fast: str) -> None:
    studio, unet = opened(made, fast), small_unet()
    with studio.host.switched_off():
        expected = stock(unet)
    assert difference(studio.warmed(unet), expected) < LIMIT
    assert transformer(studio).code == fast
    assert set(transformer(studio).ms) == {"host", DIRECT, COMPILED, WITH_KERNELS}


def test_blocks_with_kernels_count_as_compiled_and_run_them(opened: Open, made: Made) -> None:
    studio, unet = opened(made, WITH_KERNELS), small_unet()
    studio.warmed(unet)
    runs = studio.tuner.taking.runs
    studio.picture(unet)
    assert studio.compiled == studio.tuner.taking.runs - runs > 0


def test_only_blocks_with_a_winner_have_a_second_graph(opened: Open, made: Made) -> None:
    opened(made).warmed(small_unet())
    assert sorted(made.graphs) == [()] * SMALL_STRUCTURES + [(GATED,)]


def test_without_a_winner_there_is_one_graph(opened: Open, made: Made) -> None:
    opened(made, tuner=FakeTuner()).warmed(small_unet())
    assert made.graphs == [()] * SMALL_STRUCTURES


def test_another_size_makes_no_graph(opened: Open, made: Made) -> None:
    unet = small_unet()
    studio = opened(made, WITH_KERNELS)
    studio.warmed(unet)
    before = made.counters().graphs
    for given in (inputs(batch=1), inputs(size=(24, 14), tokens=231)):
        studio.warmed(unet, given)
    assert made.counters().graphs == before
    assert {case.code for case in studio.cases() if case.block.startswith("transf")} == {WITH_KERNELS}


# When it is made


def test_it_waits_until_operators_are_measured(opened: Open, made: Made) -> None:
    unet = small_unet()
    studio = opened(made, WITH_KERNELS)
    studio.tuner.pending = 1
    studio.warmed(unet)
    assert (made.graphs, transformer(studio).reason) == ([()] * SMALL_STRUCTURES, "to be compiled")
    studio.tuner.pending = 0
    studio.warmed(unet)
    assert (made.graphs[SMALL_STRUCTURES:], transformer(studio).code) == ([(GATED,)], WITH_KERNELS)


@pytest.mark.parametrize(
    ("fast", "next_start"), [(WITH_KERNELS, [(GATED,)]), (COMPILED, [()] * SMALL_STRUCTURES)]
)
def test_the_next_start_makes_the_graph_that_won_only(
    opened: Open, made: Made, tmp_path: Path, fast: str, next_start: list[tuple[str, ...]]
) -> None:
    unet = small_unet()
    opened(made, fast, folder=tmp_path).warmed(unet)
    made.graphs.clear()
    studio = opened(made, folder=tmp_path)
    studio.warmed(unet)
    assert (transformer(studio).code, made.graphs) == (fast, next_start)


@torch.no_grad()
def test_a_call_that_may_not_run_twice_is_direct_and_the_next_one_tells(made: Made) -> None:
    small, winner = small_transformer(), Winner()
    given, block = calls(small)[0], Block(small.kind, small.spec)
    choice = Choice(Verdicts(None), Workshop(made, Activity(), helper=None), lambda: True)  # type: ignore[arg-type]
    seen = []
    for may_prove in (False, True, True):
        _, code = choice.run(block, *given, Rules(tuned=winner), None, is_forced=False, may_prove=may_prove)
        seen.append((code, winner.runs, len(choice.report().cases)))
    assert seen == [(DIRECT, 1, 0), (DIRECT, 3, 1), (DIRECT, 4, 1)]


# When winners change


def test_another_winner_is_a_new_decision_by_the_same_graphs(opened: Open, made: Made) -> None:
    unet = small_unet()
    studio = opened(made, WITH_KERNELS)
    studio.warmed(unet)
    made.graphs.clear()
    studio.tuner.taking = Winner("quicker")
    studio.picture(unet)
    assert (transformer(studio).code, transformer(studio).next_code) == (DIRECT, WITH_KERNELS)
    studio.picture(unet)
    assert (transformer(studio).code, made.graphs) == (WITH_KERNELS, [])


def test_a_new_decision_comes_into_effect_between_pictures_only(opened: Open, made: Made) -> None:
    unet = small_unet()
    studio = opened(made, WITH_KERNELS)
    studio.warmed(unet)
    studio.tuner.taking = Winner("quicker")
    studio.picture(unet)
    run(unet, inputs())
    assert studio.compiled == 0
    studio.picture(unet)
    assert studio.compiled > 0


def test_a_winner_that_is_gone_leaves_the_decision_without_it(opened: Open, made: Made) -> None:
    unet = small_unet()
    studio = opened(made, WITH_KERNELS)
    studio.warmed(unet)
    studio.tuner.taking = Taking()
    studio.warmed(unet)
    assert transformer(studio).code == DIRECT
    assert WITH_KERNELS not in transformer(studio).ms


def test_a_case_of_former_winners_does_not_keep_calls_from_being_recorded(opened: Open, made: Made) -> None:
    unet = small_unet()
    studio = opened(made, tuner=FakeTuner())
    studio.picture(unet)
    studio.engine.warm_up(timeout_s=120)
    assert studio.choice.settled() is None
    studio.tuner.taking = Winner()
    studio.warmed(unet)
    assert studio.choice.settled() is not None


def test_what_is_never_drawn_again_does_not_keep_calls_from_being_recorded(opened: Open, made: Made) -> None:
    studio = opened(made)
    studio.picture(small_unet())
    studio.engine.warm_up(timeout_s=120)
    for _ in range(8):
        studio.choice.apply()
        assert studio.choice.settled() is None
    studio.choice.apply()
    assert studio.choice.settled() is not None


# Who asks for compiled code


def test_asked_for_compiled_code_is_traced_in_plain_torch(opened: Open, made: Made) -> None:
    studio = opened(made, WITH_KERNELS, code="compiled")
    studio.warmed(small_unet())
    assert (transformer(studio).code, made.graphs) == (COMPILED, [()] * SMALL_STRUCTURES)
    assert studio.compiled == SMALL


def test_asked_for_compiled_code_is_with_kernels_where_that_was_proved(
    opened: Open, made: Made, tmp_path: Path
) -> None:
    unet = small_unet()
    opened(made, WITH_KERNELS, folder=tmp_path).warmed(unet)
    studio = opened(made, code="compiled", folder=tmp_path)
    studio.warmed(unet)
    assert (transformer(studio).code, studio.compiled) == (WITH_KERNELS, SMALL)


# What fails


def test_a_kernel_that_fails_in_a_graph_is_followed_by_plain_torch(opened: Open, made: Made) -> None:
    unet = small_unet()
    studio = opened(made, WITH_KERNELS)
    expected, winner = studio.warmed(unet), studio.tuner.taking
    winner.fails = True
    assert difference(studio.picture(unet), expected) < LIMIT
    assert transformer(studio).code == WITH_KERNELS
    assert set(winner.failures) == {"gated linear: no such kernel"}


def test_a_graph_that_cannot_be_made_does_not_end_the_other(opened: Open, made: Made, tmp_path: Path) -> None:
    def fail(part: Part) -> Graph:
        raise CompileError("bad kernel")

    unet = small_unet()
    made.replacing = fail
    studio = opened(made, COMPILED, folder=tmp_path)
    studio.warmed(unet)
    assert (transformer(studio).code, transformer(studio).reason) == (
        COMPILED,
        "90 % less time than direct; bad kernel",
    )
    made.graphs.clear()
    opened(made, folder=tmp_path).warmed(unet)  # what was missing may be there
    assert made.graphs.count((GATED,)) == 1


class Broken(Graph):
    def run(self, *args: Any) -> Any:
        raise ValueError("bad kernel")


def test_a_graph_that_fails_in_its_proof_does_not_end_the_other(opened: Open, made: Made) -> None:
    made.replacing = lambda part: Broken(part.structure, part.condition, as_traced(part.condition))
    studio, unet = opened(made, COMPILED), small_unet()
    studio.warmed(unet)
    studio.picture(unet)
    assert transformer(studio).code == COMPILED
    assert "failed when it was proved: ValueError: bad kernel" in transformer(studio).reason


def test_an_older_torch_makes_one_graph_and_says_why(
    monkeypatch: pytest.MonkeyPatch, opened: Open, made: Made, tmp_path: Path
) -> None:
    monkeypatch.setattr(custom, "why_not", lambda: "torch 2.1.2 is too old")
    studio = opened(made, COMPILED, folder=tmp_path)
    studio.warmed(small_unet())
    assert made.graphs == [()] * SMALL_STRUCTURES
    assert transformer(studio).reason.endswith("; torch 2.1.2 is too old")
    assert "too old" in (tmp_path / "verdicts.json").read_text()


def test_what_ended_the_process_twice_when_it_was_made_does_not_end_the_other(
    opened: Open, made: Made, tmp_path: Path
) -> None:
    names: list[str] = []

    def end(part: Part) -> Graph:
        names.extend(json.loads((tmp_path / "verdicts.json").read_text())["trials"])
        raise CompileError("the process ended")

    unet, made.replacing = small_unet(), end
    opened(made, COMPILED, folder=tmp_path).warmed(unet)
    for name in names * 2:
        Verdicts(tmp_path).lose_trial(name)
    made.graphs.clear()
    studio = opened(made, folder=tmp_path)
    studio.warmed(unet)
    assert (transformer(studio).code, made.graphs.count((GATED,))) == (COMPILED, 0)
    assert "the program ended twice" in transformer(studio).reason
