"""Compiled code in the engine: when it runs, what it never does, how each failure ends in a right picture."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_accel import choice as choice_module
from lib_accel.choice import Choice
from lib_accel.engine import Engine
from lib_accel.graphs import proof
from lib_accel.graphs.activity import Activity
from lib_accel.graphs.compiler import Backend, Compiler
from lib_accel.graphs.structure import Condition
from lib_accel.graphs.verdicts import Verdicts
from lib_accel.graphs.workshop import Workshop
from lib_accel.options import Options
from lib_accel.report import CaseReport
from tests.fakes.host import FakeHost
from tests.fakes.models import (
    Inputs,
    difference,
    inputs,
    run,
    tiny_controlnet,
    tiny_sd2_unet,
    tiny_sgm_unet,
    tiny_unet,
)
from tests.fakes.tuning import FakeTuner
from tests.test_equality import LIMIT

COMPILABLE = 16  # of the 19 blocks of the tiny UNet; the others are single convolutions and the UNet's own


def small_unet(seed: int = 0) -> nn.Module:
    """One level only, as to trace takes half a second a structure."""
    return tiny_unet(seed, channel_mult=(1,), attention_resolutions=(1,))


SMALL, SMALL_STRUCTURES = 9, 3  # blocks of the small UNet that are compiled, of 11


def as_traced(condition: Condition) -> Backend:
    """A compiler that runs the graph as it was traced."""
    return lambda module, example: module.forward


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    """One for all tests that do not count: to trace takes longer than to run."""
    return Compiler(as_traced)


class Studio:
    """An engine that compiles, and what it makes of a UNet."""

    def __init__(
        self,
        compiler: Compiler,
        *,
        code: str = "compiled",
        folder: Path | None = None,
        tuner: FakeTuner | None = None,
    ) -> None:
        self.host = FakeHost()
        self.host.asked = Options(code=code)
        self.tuner: Any = tuner
        workshop = Workshop(compiler, Activity(), helper=None)
        self.choice = Choice(Verdicts(folder), workshop, self.host.is_busy)
        self.engine = Engine(self.host, self.choice, tuner=tuner)  # type: ignore[arg-type]

    def picture(self, unet: nn.Module, given: Inputs | None = None) -> Tensor:
        """One call of a new picture."""
        self.engine.begin_generation()
        return run(unet, given or inputs())

    def warmed(self, unet: nn.Module, given: Inputs | None = None) -> Tensor:
        """The third picture: after one that asks for graphs and one that proves them."""
        self.picture(unet, given)
        assert self.engine.warm_up(timeout_s=120)
        self.picture(unet, given)
        return self.picture(unet, given)

    @property
    def compiled(self) -> int:
        return self.engine.generation.compiled

    def cases(self) -> list[CaseReport]:
        return list(self.engine.report().graphs.cases)


@pytest.fixture
def studio(compiler: Compiler) -> Iterator[Studio]:
    """Asks for compiled code, be it faster or not."""
    with attached(Studio(compiler)) as studio:
        yield studio


@contextlib.contextmanager
def attached(studio: Studio) -> Iterator[Studio]:
    """The studio, its engine attached for the `with` block."""
    studio.engine.attach()
    try:
        yield studio
    finally:
        studio.engine.detach()


@pytest.fixture
def with_backend() -> Iterator[Callable[..., Studio]]:
    """Studios with a back end of one's own."""
    made: list[Studio] = []

    def make(backend: Backend, **settings: Any) -> Studio:
        studio = Studio(Compiler(lambda condition: backend), **settings)
        made.append(studio)
        studio.engine.attach()
        return studio

    yield make
    for studio in made:
        studio.engine.detach()


def stock(unet: nn.Module, given: Inputs | None = None) -> Tensor:
    """What the model gives when nobody accelerates it: called before an engine attaches, or around it."""
    return run(unet, given or inputs())


# When it runs


def test_blocks_run_compiled_in_the_picture_after_their_proof(studio: Studio) -> None:
    unet = tiny_unet()
    done = []
    for _ in range(3):
        studio.picture(unet)
        assert studio.engine.warm_up(timeout_s=120)
        done.append(studio.compiled)
    assert done == [0, 0, COMPILABLE]


def test_compiled_pictures_are_stocks(studio: Studio) -> None:
    unet = tiny_unet()
    with studio.host.switched_off():
        expected = stock(unet)
    assert difference(studio.warmed(unet), expected) < LIMIT
    assert studio.compiled == COMPILABLE


def test_a_code_does_not_change_within_a_picture(studio: Studio) -> None:
    unet = tiny_unet()
    studio.picture(unet)
    studio.engine.warm_up(timeout_s=120)
    for _ in range(3):
        run(unet, inputs())
    assert studio.compiled == 0


@pytest.mark.parametrize("make", [tiny_unet, tiny_sd2_unet, tiny_sgm_unet])
def test_every_family_is_compiled(studio: Studio, make: Callable[[], nn.Module]) -> None:
    unet = make()
    given = inputs(vector=make is tiny_sgm_unet)
    with studio.host.switched_off():
        expected = stock(unet, given)
    assert difference(studio.warmed(unet, given), expected) < LIMIT
    assert studio.compiled > 0.8 * COMPILABLE


def test_the_status_counts_compiled_blocks(studio: Studio) -> None:
    unet = tiny_unet()
    studio.host.live = [("UNet", unet)]
    studio.warmed(unet)
    assert f"{COMPILABLE} of 19 blocks of the last picture compiled" in studio.engine.report().summary


def test_a_block_with_attention_held_back_is_not_compiled(studio: Studio) -> None:
    unet = tiny_unet()
    studio.warmed(unet)
    studio.host.attention = ["a hypernetwork is active"]
    studio.picture(unet)
    assert 0 < studio.compiled < COMPILABLE


def test_direct_asks_for_no_graph(compiler: Compiler) -> None:
    with attached(Studio(compiler, code="direct")) as studio:
        studio.picture(tiny_unet())
        assert studio.cases() == []


def test_host_leaves_every_block_to_the_host(compiler: Compiler) -> None:
    with attached(Studio(compiler, code="host")) as studio:
        studio.picture(tiny_unet())
        assert (studio.engine.generation.fast, studio.engine.generation.host) == (0, 19)


def test_auto_compiles_nothing(compiler: Compiler) -> None:
    with attached(Studio(compiler, code="auto")) as studio:
        studio.picture(tiny_unet())
        assert studio.cases() == []


# What compiles nothing


def in_place(unet: nn.Module) -> nn.Module:
    """As a LoRA is merged."""
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.mul_(1.01)
    return unet


def replaced(unet: nn.Module) -> nn.Module:
    for module in unet.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.detach() * 1.01, requires_grad=True)
    return unet


@pytest.mark.parametrize(
    ("change", "given"),
    [
        (in_place, inputs()),
        (replaced, inputs()),
        (lambda unet: small_unet(seed=3), inputs()),
        (lambda unet: unet, inputs(tokens=231)),
        (lambda unet: unet, inputs(batch=1)),
        (lambda unet: unet, inputs(batch=5, size=(10, 6))),
        (lambda unet: unet, inputs(size=(24, 14), tokens=154)),
    ],
    ids=["LoRA", "parameters", "checkpoint", "prompt", "one", "batch", "size"],
)
def test_no_graph_is_added_by(with_backend: Callable[..., Studio], change: Any, given: Inputs) -> None:
    unet = small_unet()
    studio = with_backend(lambda module, example: module.forward)
    studio.warmed(unet)
    unet = change(unet)
    studio.warmed(unet, given)
    made = studio.engine.report().graphs
    assert (made.structures, made.graphs, made.recompiles) == (SMALL_STRUCTURES, SMALL_STRUCTURES, 0)
    assert studio.compiled == SMALL


def test_a_control_model_adds_no_structure(studio: Studio) -> None:
    unet, control, given = tiny_unet(), tiny_controlnet(), inputs()
    studio.warmed(unet)
    before = studio.engine.report().graphs.structures
    for _ in range(3):
        studio.engine.begin_generation()
        with torch.no_grad():
            control(given.x, torch.ones(2, 3, 64, 64), given.timesteps, given.context)
        studio.engine.warm_up(timeout_s=120)
    assert studio.compiled > 0
    assert studio.engine.report().graphs.structures == before


def test_a_picture_runs_direct_while_another_thread_compiles(with_backend: Callable[..., Studio]) -> None:
    is_compiling, may_go_on = threading.Event(), threading.Event()

    def backend(module: Any, example: Any) -> Any:
        is_compiling.set()
        may_go_on.wait(60)
        return module.forward

    unet = small_unet()
    studio = with_backend(backend)
    studio.picture(unet)
    finishing = threading.Thread(target=studio.engine.warm_up)
    finishing.start()
    assert is_compiling.wait(60)
    studio.picture(unet)
    done = studio.engine.generation.copy()
    may_go_on.set()
    finishing.join()
    assert (done.direct, done.compiled, done.host) == (11, 0, 0)


# What is remembered


def test_a_verdict_outlives_the_process(
    monkeypatch: pytest.MonkeyPatch, compiler: Compiler, tmp_path: Path
) -> None:
    unet = small_unet()
    with attached(Studio(compiler, folder=tmp_path)) as studio:
        studio.warmed(unet)
    monkeypatch.setattr(choice_module, "prove", _never)
    with attached(Studio(compiler, folder=tmp_path)) as studio:
        studio.picture(unet)
        studio.engine.warm_up(timeout_s=120)
        studio.picture(unet)
        assert studio.compiled == SMALL


def _never(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("proved again")


def test_what_lost_is_not_compiled_again(
    monkeypatch: pytest.MonkeyPatch, with_backend: Callable[..., Studio], tmp_path: Path
) -> None:
    unet = small_unet()
    chosen_freely(monkeypatch, slow=proof.COMPILED)
    with_backend(lambda module, example: module.forward, code="measured", folder=tmp_path).warmed(unet)
    again = with_backend(lambda module, example: module.forward, code="measured", folder=tmp_path)
    again.warmed(unet)
    assert (again.compiled, again.engine.report().graphs.graphs) == (0, 0)


def test_cleared_verdicts_are_found_anew(compiler: Compiler, tmp_path: Path) -> None:
    unet = small_unet()
    with attached(Studio(compiler, folder=tmp_path)) as studio:
        studio.warmed(unet)
        assert studio.choice.clear() == SMALL_STRUCTURES
        studio.picture(unet)
        assert studio.compiled == 0


# What is chosen


def chosen_freely(
    monkeypatch: pytest.MonkeyPatch, *, slow: str | None = None, fast: str | None = None
) -> None:
    """Finds `slow` to be ten times slower than anything else, and `fast` ten times faster."""
    monkeypatch.setattr(choice_module, "_PROOF_SHARE", 1e9)
    real = proof.prove

    def timed(sides: Any, kind: str, **options: Any) -> Any:
        seconds = {slow: 10.0, fast: 0.1}
        by_side = {side: seconds.get(code, 1.0) for code, side in sides.items()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(proof, "_seconds", lambda side, device: by_side[side])
            return real(sides, kind, **options)

    monkeypatch.setattr(choice_module, "prove", timed)


@pytest.mark.parametrize(
    ("slow", "compiled"),
    [(proof.COMPILED, 0), (None, 0), (proof.DIRECT, SMALL)],
    ids=["loses", "equals", "wins"],
)
def test_compiled_code_runs_if_it_is_faster_than_direct(
    monkeypatch: pytest.MonkeyPatch, compiler: Compiler, slow: str | None, compiled: int
) -> None:
    chosen_freely(monkeypatch, slow=slow)
    with attached(Studio(compiler, code="measured")) as studio:
        studio.warmed(small_unet())
        assert studio.compiled == compiled


def test_proofs_take_a_small_share_of_a_picture(monkeypatch: pytest.MonkeyPatch, compiler: Compiler) -> None:
    chosen_freely(monkeypatch)
    monkeypatch.setattr(choice_module, "_PROOF_SHARE", 0.0)
    with attached(Studio(compiler, code="measured")) as studio:
        studio.warmed(small_unet())
        proved = [case for case in studio.cases() if case.ms]
        assert len(proved) == 2  # one in each of both pictures after the graphs were made


# What fails


class Wrong:
    """A compiler whose code is off, by this function of the output."""

    def __init__(self, spoil: Callable[[Tensor], Tensor]) -> None:
        self._spoil = spoil

    def __call__(self, module: Any, example: Any) -> Callable[..., Any]:
        return lambda *values: [self._spoil(each) for each in module.forward(*values)]


def _raise(error: Exception) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


def holed(x: Tensor) -> Tensor:
    x = x.clone()
    x.view(-1)[3] = float("nan")
    return x


FAILURES = {
    "does not compile": (_raise(RuntimeError("no C++ compiler")), "no C++ compiler"),
    "does not run": (lambda module, example: _raise(RuntimeError("bad kernel")), "bad kernel"),
    "gives other numbers": (Wrong(lambda x: 1.01 * x), "differs from direct"),
    "gives a NaN": (Wrong(holed), "differs from direct"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_code_that_fails_leaves_direct_code_and_a_reason(
    with_backend: Callable[..., Studio], name: str
) -> None:
    backend, reason = FAILURES[name]
    unet = small_unet()
    studio = with_backend(backend)
    with studio.host.switched_off():
        expected = stock(unet)
    assert difference(studio.warmed(unet), expected) < LIMIT
    assert (studio.compiled, studio.engine.generation.host) == (0, 0)
    assert all(reason in case.reason for case in studio.cases())


def test_the_status_can_be_sent_when_a_graph_gave_a_nan(with_backend: Callable[..., Studio]) -> None:
    studio = with_backend(Wrong(holed))
    studio.warmed(small_unet())
    assert "NaN" not in json.dumps(studio.engine.report().as_dict(), allow_nan=False)


def test_memory_that_ends_in_a_proof_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, compiler: Compiler, tmp_path: Path
) -> None:
    unet = small_unet()
    with attached(Studio(compiler, folder=tmp_path)) as studio:
        with monkeypatch.context() as patch:
            patch.setattr(choice_module, "prove", _raise(MemoryError("full")))
            studio.warmed(unet)
        studio.warmed(unet)
        assert studio.compiled == SMALL


def test_memory_that_ends_while_compiling_is_tried_three_times(with_backend: Callable[..., Studio]) -> None:
    tried = []

    def backend(module: Any, example: Any) -> Any:
        tried.append(1)
        raise MemoryError("full")

    unet = small_unet()
    studio = with_backend(backend)
    for _ in range(5):
        studio.picture(unet)
        studio.engine.warm_up(timeout_s=120)
    assert len(tried) == 3 * SMALL_STRUCTURES


def test_a_host_that_was_faster_is_measured_anew_by_the_next_process(
    monkeypatch: pytest.MonkeyPatch, compiler: Compiler, tmp_path: Path
) -> None:
    chosen_freely(monkeypatch, fast=proof.HOST)
    with attached(Studio(compiler, code="measured", folder=tmp_path)) as studio:
        studio.warmed(small_unet())
        assert studio.engine.generation.host > 0
    assert proof.HOST not in (tmp_path / "verdicts.json").read_text()


def test_nothing_is_compiled_while_acceleration_is_off(compiler: Compiler) -> None:
    unet = small_unet()
    with attached(Studio(compiler)) as studio:
        studio.host.busy = True  # so that nothing is made before
        studio.picture(unet)
        assert studio.engine.report().graphs.pending
        with studio.host.switched_off():
            run(unet, inputs())
        assert not studio.engine.report().graphs.pending


def test_after_the_same_failure_thrice_the_compiler_is_left_alone(
    with_backend: Callable[..., Studio],
) -> None:
    tried = []

    def backend(module: Any, example: Any) -> Any:
        tried.append(1)
        raise RuntimeError("no C++ compiler")

    studio = with_backend(backend)
    studio.picture(small_unet())
    studio.engine.warm_up(timeout_s=120)
    studio.picture(small_unet(), inputs(size=(32, 32)))
    before = len(tried)
    studio.engine.warm_up(timeout_s=120)
    assert len(tried) == before


def test_one_size_too_many_does_not_end_compiling(with_backend: Callable[..., Studio]) -> None:
    unet = small_unet()
    studio = with_backend(lambda module, example: module.forward)
    for _ in range(3):
        torch._dynamo.reset()
        studio.warmed(unet)
    studio.warmed(tiny_unet())
    assert studio.compiled > 0


def test_what_was_cancelled_is_asked_for_again(with_backend: Callable[..., Studio]) -> None:
    unet = small_unet()
    studio = with_backend(lambda module, example: module.forward)
    studio.picture(unet)
    studio.engine.detach()
    studio.engine.attach()
    studio.warmed(unet)
    assert studio.compiled == SMALL


def test_code_that_fails_after_its_proof_leaves_direct_code(with_backend: Callable[..., Studio]) -> None:
    is_broken = []

    def backend(module: Any, example: Any) -> Any:
        return lambda *values: _raise(RuntimeError("bad kernel"))() if is_broken else module.forward(*values)

    unet = small_unet()
    studio = with_backend(backend)
    expected = studio.warmed(unet)
    is_broken.append(True)
    assert difference(studio.picture(unet), expected) < LIMIT
    assert (studio.compiled, studio.engine.generation.direct) == (0, 11)


def test_memory_that_ends_in_compiled_code_is_the_hosts_to_handle(
    with_backend: Callable[..., Studio],
) -> None:
    is_full = []

    def backend(module: Any, example: Any) -> Any:
        return lambda *values: _raise(MemoryError("full"))() if is_full else module.forward(*values)

    unet = small_unet()
    studio = with_backend(backend)
    expected = studio.warmed(unet)
    is_full.append(True)
    assert difference(studio.picture(unet), expected) < LIMIT
    is_full.clear()
    studio.picture(unet)
    assert studio.compiled == SMALL


def test_graphs_that_somebody_threw_away_are_made_again(with_backend: Callable[..., Studio]) -> None:
    unet = small_unet()
    studio = with_backend(lambda module, example: module.forward)
    expected = studio.warmed(unet)
    torch._dynamo.reset()
    assert difference(studio.picture(unet), expected) < LIMIT
    studio.warmed(unet)
    assert studio.compiled == SMALL


def test_no_more_than_two_graphs_are_made_for_a_structure(with_backend: Callable[..., Studio]) -> None:
    unet = small_unet()
    studio = with_backend(lambda module, example: module.forward)
    for _ in range(4):
        torch._dynamo.reset()
        studio.warmed(unet)
    assert studio.compiled == 0
    assert all("one graph more than 2" in case.reason for case in studio.cases())


# What is left alone


@pytest.mark.parametrize(("tries", "compiled"), [(1, SMALL), (2, 0)])
def test_what_ended_the_process_twice_is_not_tried_again(
    compiler: Compiler, tmp_path: Path, tries: int, compiled: int
) -> None:
    unet = small_unet()
    with attached(Studio(compiler, folder=tmp_path)) as studio:
        studio.warmed(unet)
    file = tmp_path / "verdicts.json"
    content = json.loads(file.read_text())
    gone = {"process": 2**22 + 1, "tries": tries}  # a number that no process has
    file.write_text(json.dumps(content | {"trials": dict.fromkeys(content["verdicts"], gone)}))
    with attached(Studio(compiler, folder=tmp_path)) as studio:
        studio.warmed(unet)
        assert studio.compiled == compiled


def test_the_hosts_random_state_is_not_advanced(studio: Studio) -> None:
    unet = small_unet()
    before = torch.get_rng_state()
    studio.warmed(unet)
    assert torch.equal(torch.get_rng_state(), before)


def test_torchs_settings_are_as_before(studio: Studio) -> None:
    import torch._dynamo
    import torch._inductor.config
    import torch.fx.experimental._config as shapes

    homes: Any = (torch._dynamo.config, torch._inductor.config, shapes)
    before = [home.get_config_copy() for home in homes]
    studio.warmed(small_unet(), inputs(size=(12, 16)))
    assert [home.get_config_copy() for home in homes] == before


def test_a_dropped_model_is_freed_though_its_blocks_were_compiled(studio: Studio) -> None:
    import gc
    import weakref

    unet = small_unet()
    studio.warmed(unet)
    gone = weakref.ref(unet)
    del unet
    gc.collect()
    assert gone() is None
