"""Whole calls of UNets as recordings: pictures are the same, whatever happens around the calls."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_accel import engine as engine_module
from lib_accel.blocks import res
from lib_accel.choice import Choice
from lib_accel.graphs.activity import Activity
from lib_accel.graphs.compiler import Compiler, Graph
from lib_accel.graphs.recorder import Recorder, TapeRecording
from lib_accel.graphs.verdicts import Verdicts
from lib_accel.graphs.workshop import Workshop
from lib_accel.options import Options
from tests.fakes.host import FakeHost
from tests.fakes.launching import LaunchingStudio, careless
from tests.fakes.lora import FakeLora, name_layers, random_network
from tests.fakes.models import difference, inputs, run, tiny_sgm_unet, tiny_unet
from tests.fakes.vae import picture as latents
from tests.fakes.vae import run as decode
from tests.fakes.vae import tiny_decoder
from tests.test_choice import SMALL, as_traced, in_place, replaced, small_unet
from tests.test_equality import LIMIT

CLOSE = 1e-6  # relative L2: a replay does what our code did before it, with the same kernels
BLOCKS = 19  # of the tiny UNet, with its own layers
CONTAINERS = 16  # of them in containers that are worth a recording of their own

FAMILIES: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "ldm": (tiny_unet, {}),
    "sgm": (tiny_sgm_unet, {"vector": True}),
}


@pytest.fixture
def studio() -> Iterator[LaunchingStudio]:
    with LaunchingStudio.opened() as studio:
        yield studio


# The picture


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_call_is_replayed_and_gives_the_same(studio: LaunchingStudio, family: str) -> None:
    make, form = FAMILIES[family]
    unet = make()
    studio.warmed(unet, inputs(**form))
    for seed in (2, 3):
        given = inputs(seed=seed, **form)
        stock, eager = studio.stock(unet, given), studio.eager(unet, given)
        assert difference(run(unet, given), eager) <= CLOSE
        assert difference(run(unet, given), stock) < LIMIT
    assert (studio.report.graphs, studio.report.captures, studio.report.replays) == (1, 1, 5)


def test_blocks_and_calls_are_counted_as_if_they_ran(studio: LaunchingStudio) -> None:
    unet = tiny_unet()
    counted = []
    for _ in range(4):
        run(unet, inputs())
        done = studio.engine.generation
        counted.append((done.direct, done.host, done.replayed, done.model_calls))
    replayed = [0, 0, BLOCKS, 2 * BLOCKS]
    assert counted == [(BLOCKS * n, 0, replayed[n - 1], n) for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("family", FAMILIES)
def test_who_writes_into_inputs_and_results_spoils_nothing(studio: LaunchingStudio, family: str) -> None:
    make, form = FAMILIES[family]
    unet = make()
    for seed in range(5):
        given = inputs(seed=seed, **form)
        assert difference(careless(unet, given), studio.eager(unet, given)) <= CLOSE
    assert studio.recorder.replays >= 3


def test_prompts_of_two_lengths_take_turns_and_results_stay(studio: LaunchingStudio) -> None:
    unet = tiny_unet()
    for seed in range(5):
        short, long = inputs(seed=seed), inputs(tokens=154, seed=seed)
        first = run(unet, short)
        second = run(unet, long)
        assert difference(first, studio.eager(unet, short)) <= CLOSE
        assert difference(second, studio.eager(unet, long)) <= CLOSE
    assert (studio.report.captures, studio.report.replays) == (2, 6)


def test_sizes_batches_and_no_guidance_are_cases_of_their_own(studio: LaunchingStudio) -> None:
    unet = tiny_unet()
    forms: list[dict[str, Any]] = [
        {},
        {"batch": 1},
        {"batch": 4, "size": (12, 8)},
        {"tokens": 231},
        {"size": (10, 14)},
    ]
    for seed in range(4):
        for form in forms:
            given = inputs(seed=seed, **form)
            assert difference(run(unet, given), studio.stock(unet, given)) < LIMIT
    assert (studio.report.captures, studio.report.replays) == (len(forms), 2 * len(forms))


def test_timesteps_are_inputs_whatever_their_dtype(studio: LaunchingStudio) -> None:
    unet = tiny_unet()
    for step in (900, 600, 300, 0):
        given = inputs()._replace(timesteps=torch.full((2,), step))
        assert difference(run(unet, given), studio.stock(unet, given)) < LIMIT
    assert studio.report.replays == 2


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_inference_mode_and_no_grad_may_be_mixed(studio: LaunchingStudio, mode: Any) -> None:
    unet = tiny_unet()
    for turn in range(6):
        given = inputs(seed=turn)
        with mode() if turn % 2 else contextlib.nullcontext():
            result = run(unet, given)
        assert difference(result.clone(), studio.eager(unet, given)) <= CLOSE
    assert studio.report.replays == 4


def test_a_model_that_was_made_in_inference_mode_is_replayed(studio: LaunchingStudio) -> None:
    with torch.inference_mode():
        unet = tiny_unet()
        for seed in range(4):
            given = inputs(seed=seed)
            assert difference(run(unet, given), studio.eager(unet, given)) <= CLOSE
    assert studio.report.replays == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_under_autocast_a_replay_gives_the_same(studio: LaunchingStudio, family: str) -> None:
    make, form = FAMILIES[family]
    unet = make()
    for seed in range(4):
        given = inputs(seed=seed, **form)
        with torch.autocast("cpu", torch.bfloat16):
            result = run(unet, given)
            assert difference(result, studio.eager(unet, given)) <= CLOSE
    assert studio.report.replays == 2
    assert difference(run(unet, given), result) > CLOSE  # without autocast: another case


def test_with_gradients_nothing_is_replayed(studio: LaunchingStudio) -> None:
    unet, given = tiny_unet(), inputs()
    studio.warmed(unet)
    with torch.enable_grad():
        unet(given.x.requires_grad_(), given.timesteps, given.context).sum().backward()
    assert given.x.grad is not None


# Weights


def test_loras_that_are_merged_in_place_need_nothing_new() -> None:
    lora, unet = FakeLora(), tiny_unet()
    name_layers(unet)
    network = random_network(unet, "style", seed=7, with_biases=False)
    with lora.installed(), LaunchingStudio.opened(FakeHost(lora)) as studio:
        bare = studio.warmed(unet)
        for strength in (1.0, 0.5, 0.0):
            network.unet_multiplier, lora.loaded_networks = strength, [network] if strength else []
            replayed = run(unet, inputs())
            assert difference(replayed, studio.eager(unet)) <= CLOSE
            assert (difference(replayed, bare) > 0.01) == (strength > 0)
        assert (studio.report.captures, studio.report.replays) == (1, 4)


def moved(unet: nn.Module) -> nn.Module:
    """To other memory, by `.to`, as a model that is put away and fetched again."""
    return unet.double().float()


def with_data_replaced(unet: nn.Module) -> nn.Module:
    for parameter in unet.parameters():
        parameter.data = parameter.data * 1.01
    return unet


def with_one_weight_replaced(unet: Any) -> nn.Module:
    unet.middle_block[0].in_layers[2].bias = nn.Parameter(torch.ones(128), requires_grad=False)
    return unet


def with_one_own_weight_replaced(unet: Any) -> nn.Module:
    unet.time_embed[2].bias = nn.Parameter(torch.ones(256), requires_grad=False)
    return unet


@pytest.mark.parametrize(
    "change", [moved, with_data_replaced, replaced, with_one_weight_replaced, with_one_own_weight_replaced]
)
def test_weights_in_other_memory_are_recorded_anew(studio: LaunchingStudio, change: Any) -> None:
    unet = tiny_unet()
    studio.warmed(unet)
    change(unet)
    for seed in range(4):
        given = inputs(seed=seed)
        assert difference(run(unet, given), studio.stock(unet, given)) < LIMIT
    assert (studio.report.graphs, studio.report.captures, studio.report.replays) == (1, 2, 3)


def loaded_in_place(unet: nn.Module) -> nn.Module:
    unet.load_state_dict(tiny_unet(seed=9).state_dict())
    return unet


@pytest.mark.parametrize("change", [loaded_in_place, in_place])
def test_weights_that_change_in_place_need_nothing_new(studio: LaunchingStudio, change: Any) -> None:
    unet = tiny_unet()
    before = studio.warmed(unet)
    change(unet)
    result = run(unet, inputs())
    assert difference(result, studio.eager(unet)) <= CLOSE
    assert difference(result, before) > 0.01
    assert studio.report.captures == 1


def test_two_checkpoints_in_turn_keep_their_recordings(studio: LaunchingStudio) -> None:
    unets = tiny_unet(), tiny_unet(seed=4)
    for seed in range(5):
        for unet in unets:
            given = inputs(seed=seed)
            assert difference(run(unet, given), studio.eager(unet, given)) <= CLOSE
    assert (studio.report.captures, studio.report.replays) == (2, 6)


def test_a_dropped_model_is_freed_with_its_recordings(studio: LaunchingStudio) -> None:
    unet = tiny_unet()
    studio.warmed(unet)
    gone = [
        weakref.ref(unet),
        weakref.ref(next(unet.parameters())),
        *map(weakref.ref, studio.recorder._recordings),
    ]
    del unet
    gc.collect()
    assert [each() for each in gone] == [None] * 3
    assert (studio.report.graphs, studio.report.mib) == (0, 0)


# Other threads


def in_a_thread(call: Callable[[], Any]) -> Any:
    results: list[Any] = []
    other = threading.Thread(target=lambda: results.append(call()))
    other.start()
    other.join()
    return results[0]


def test_a_preview_on_another_thread_runs_as_always(studio: LaunchingStudio) -> None:
    unet, decoder = tiny_unet(), tiny_decoder()
    expected, image = studio.eager(unet), decode(decoder, latents())
    for _ in range(3):
        run(unet, inputs())
        decode(decoder, latents())
    before = studio.report.replays
    assert studio.replayed_by(lambda: in_a_thread(lambda: run(unet, inputs()))) == 0
    assert difference(in_a_thread(lambda: run(unet, inputs())), expected) <= CLOSE
    assert difference(in_a_thread(lambda: decode(decoder, latents())), image) <= CLOSE
    assert studio.report.replays == before
    assert studio.replayed_by(lambda: run(unet, inputs())) == BLOCKS


def test_a_preview_in_the_middle_of_a_replay_spoils_nothing(
    studio: LaunchingStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet, decoder = tiny_unet(), tiny_decoder()
    expected, image = studio.warmed(unet), decode(decoder, latents())
    seen, replay = [], TapeRecording.replay

    def interrupted(recording: TapeRecording) -> None:
        seen.append(in_a_thread(lambda: (run(unet, inputs()), decode(decoder, latents()))))
        replay(recording)
        seen.append(in_a_thread(lambda: (run(unet, inputs()), decode(decoder, latents()))))

    monkeypatch.setattr(TapeRecording, "replay", interrupted)
    assert difference(run(unet, inputs()), expected) <= CLOSE
    assert [
        max(difference(*pair) for pair in zip(each, (expected, image), strict=True)) <= CLOSE for each in seen
    ] == [True] * 2


def test_a_hosts_decoder_is_replayed_by_who_draws(studio: LaunchingStudio) -> None:
    decoder = tiny_decoder()
    expected = decode(decoder, latents())
    assert [studio.replayed_by(lambda: decode(decoder, latents())) for _ in range(3)] == [0, 10, 10]
    assert difference(decode(decoder, latents()), expected) <= CLOSE


def test_while_somebody_else_is_replaying_calls_run_as_always(studio: LaunchingStudio) -> None:
    unet = tiny_unet()
    expected = studio.warmed(unet)
    with studio.recorder.turn(torch.device("cpu")):
        assert difference(run(unet, inputs()), expected) <= CLOSE
    assert studio.report.reasons == {"another thread was launching a graph": 1}
    assert studio.engine.generation.host == 0


def test_memory_that_is_released_on_another_thread_meanwhile_spoils_nothing(
    studio: LaunchingStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet, replay = tiny_unet(), TapeRecording.replay
    expected = studio.warmed(unet)

    def interrupted(recording: TapeRecording) -> None:
        replay(recording)
        other = threading.Thread(target=studio.engine.release_memory)
        other.start()
        other.join(0.3)  # one that waits for its turn does not end before

    monkeypatch.setattr(TapeRecording, "replay", interrupted)
    assert difference(run(unet, inputs()), expected) <= CLOSE
    assert (studio.engine.generation.host, dict(studio.engine.generation.reasons)) == (0, {})


# What fails


def failing_from(
    monkeypatch: pytest.MonkeyPatch, error: Exception, *, only_recorded: bool = False
) -> list[int]:
    """From now our function for residual blocks raises; returns what hears how often."""
    right, failed = res.res_block, []

    def fail(*args: Any, **kwargs: Any) -> Any:
        if only_recorded and torch._C._len_torch_dispatch_stack() == 0:
            return right(*args, **kwargs)
        failed.append(1)
        raise error

    monkeypatch.setattr(res, "res_block", fail)
    return failed


ERRORS = {"a fault": RuntimeError("bad kernel"), "memory": MemoryError("full")}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_fails_of_ours_in_the_second_call_leaves_the_hosts_picture(
    studio: LaunchingStudio, monkeypatch: pytest.MonkeyPatch, name: str, family: str
) -> None:
    make, form = FAMILIES[family]
    unet, given = make(), inputs(**form)
    expected = run(unet, given)
    failed = failing_from(monkeypatch, ERRORS[name])
    assert difference(run(unet, given), expected) < LIMIT
    assert failed


def test_memory_that_ends_while_a_model_is_recorded_is_tried_again(
    studio: LaunchingStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = tiny_unet()
    expected = run(unet, inputs())
    with monkeypatch.context() as patch:
        failed = failing_from(patch, MemoryError("full"), only_recorded=True)
        assert difference(run(unet, inputs()), expected) <= CLOSE
    assert failed
    assert studio.report.reasons == {}
    assert [studio.replayed_by(lambda: run(unet, inputs())) for _ in range(2)] == [0, BLOCKS]


def test_what_cannot_be_recorded_as_a_whole_is_recorded_unit_by_unit(
    studio: LaunchingStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet, record = tiny_unet(), Recorder.record
    expected = studio.eager(unet)
    seen: list[int] = []

    def first_fails(self: Recorder, *args: Any) -> Any:
        seen.append(1)
        return record(self, *args) if len(seen) > 1 else in_vain()

    def in_vain() -> Any:
        raise RuntimeError("too large")

    monkeypatch.setattr(Recorder, "record", first_fails)
    blocks = [studio.replayed_by(lambda: run(unet, inputs())) for _ in range(5)]
    assert blocks == [0, 0, 0, 0, CONTAINERS]
    assert difference(run(unet, inputs()), expected) <= CLOSE
    assert studio.report.reasons == {"RuntimeError: too large": 1}


def test_memory_that_ends_in_a_replay_frees_recordings_and_the_picture_comes(
    studio: LaunchingStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = tiny_unet()
    expected = studio.warmed(unet)

    def fail(recording: TapeRecording) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(TapeRecording, "replay", fail)
        assert difference(run(unet, inputs()), expected) < LIMIT
    assert studio.report.graphs == 0
    assert [studio.replayed_by(lambda: run(unet, inputs())) for _ in range(2)] == [0, BLOCKS]


def test_an_error_of_the_hosts_code_comes_out_as_it_is(studio: LaunchingStudio) -> None:
    unet: Any = tiny_unet()
    studio.warmed(unet)

    def interrupt(module: nn.Module, args: Any) -> None:
        raise InterruptedError("skipped")

    handle = unet.input_blocks[1].register_forward_pre_hook(interrupt)
    with pytest.raises(InterruptedError, match=r"^skipped$"):
        run(unet, inputs())
    handle.remove()
    assert studio.engine.generation.host == 0
    assert difference(run(unet, inputs()), studio.eager(unet)) <= CLOSE


# Options


def test_eager_records_nothing(studio: LaunchingStudio) -> None:
    unet = tiny_unet()
    studio.host.asked = Options(launch="eager")
    assert [studio.replayed_by(lambda: run(unet, inputs())) for _ in range(4)] == [0] * 4
    assert (studio.report.captures, studio.report.reasons) == (0, {})


def test_auto_keeps_a_replay_only_if_it_gains(
    studio: LaunchingStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = tiny_unet()
    studio.host.asked = Options(launch="auto")
    monkeypatch.setattr("lib_accel.graphs.replay._SLOWER", 0.0)
    assert [studio.replayed_by(lambda: run(unet, inputs())) for _ in range(3)] == [0] * 3
    assert any(reason.startswith("a replay takes") for reason in studio.report.reasons)


def test_no_memory_allowed_leaves_a_reason(studio: LaunchingStudio) -> None:
    unet = tiny_unet()
    studio.host.asked = Options(launch="graph", graph_memory_mib=0)
    studio.warmed(unet)
    assert studio.report.graphs == 0
    assert "graph_memory_mib is 0" in studio.report.reasons
    assert studio.report.captures == 0


def test_the_option_may_change_between_calls(studio: LaunchingStudio) -> None:
    unet = tiny_unet()
    expected = studio.warmed(unet)
    for launch, blocks in (("eager", 0), ("graph", BLOCKS), ("eager", 0), ("graph", BLOCKS)):
        studio.host.asked = Options(launch=launch)
        assert studio.replayed_by(lambda: run(unet, inputs())) == blocks
        assert difference(run(unet, inputs()), expected) <= CLOSE
    with studio.host.switched_off():
        assert studio.replayed_by(lambda: run(unet, inputs())) == 0
    studio.host.stand_aside = ["training"]
    assert studio.replayed_by(lambda: run(unet, inputs())) == 0


def test_detached_while_recorded_and_attached_again(studio: LaunchingStudio) -> None:
    unet = tiny_unet()
    expected = studio.warmed(unet)
    studio.engine.detach()
    assert (studio.report.graphs, studio.report.mib) == (0, 0)
    assert difference(run(unet, inputs()), expected) < LIMIT
    studio.engine.attach()
    assert difference(studio.warmed(unet), expected) <= CLOSE
    assert studio.replayed_by(lambda: run(unet, inputs())) == BLOCKS


def test_released_memory_is_taken_again(studio: LaunchingStudio) -> None:
    unet = tiny_unet()
    studio.warmed(unet)
    studio.engine.release_memory()
    assert studio.report.graphs == 0
    assert [studio.replayed_by(lambda: run(unet, inputs())) for _ in range(2)] == [0, BLOCKS]


def test_inputs_that_are_too_large_are_not_copied(
    studio: LaunchingStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib_accel.launching._LARGEST_INPUT_BYTES", 100)
    decoder = tiny_decoder()
    assert [studio.replayed_by(lambda: decode(decoder, latents())) for _ in range(3)] == [0] * 3
    assert any("its input is so large" in reason for reason in studio.report.reasons)


# Compiled code


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Iterator[LaunchingStudio]:
    right = Graph.run

    def run_seen(graph: Graph, given: Any, tuned: Any = None) -> tuple[Tensor, bool]:
        if torch._C._len_torch_dispatch_stack() == 0:
            return right(graph, given, tuned)
        # Dynamo's guards see the stand-in itself, so that what they compare besides is asked here.
        return graph._body(*given), torch.is_autocast_cache_enabled()

    monkeypatch.setattr(Graph, "run", run_seen)
    choice = Choice(Verdicts(None), Workshop(Compiler(as_traced), Activity(), helper=None))
    with LaunchingStudio.opened(choice=choice, code="compiled") as studio:
        yield studio


def test_compiled_code_is_replayed_and_no_proof_is_made_inside(compiling: LaunchingStudio) -> None:
    unet, blocks = small_unet(), 11
    expected = compiling.stock(unet)
    seen = []
    for _ in range(4):
        compiling.engine.begin_generation()
        for _ in range(3):
            assert difference(run(unet, inputs()), expected) < LIMIT
        done = compiling.engine.generation
        seen.append((done.compiled, done.replayed, compiling.report.captures))
        compiling.engine.warm_up(timeout_s=120)
    direct, proved, compiled, again = seen
    assert direct == (0, blocks, 1)
    assert proved == (0, 2 * blocks, 1)  # the call with the proofs is not replayed
    assert compiled == (3 * SMALL, blocks, 2)  # other code, so it is recorded anew
    assert again == (3 * SMALL, 3 * blocks, 2)


# What was found by a stranger's reading


def test_a_switch_of_torchs_is_another_call(studio: LaunchingStudio) -> None:
    unet = tiny_unet()
    studio.warmed(unet)
    captures = studio.report.captures
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(not before)
    try:
        studio.warmed(unet)
    finally:
        torch.use_deterministic_algorithms(before)
    assert studio.report.captures == 2 * captures


class Wrapped(nn.Parameter):
    """A weight that does not say where its numbers are."""


def test_weights_of_a_class_of_their_own_are_never_recorded(studio: LaunchingStudio) -> None:
    unet: Any = tiny_unet()
    unet.out[2].weight = Wrapped(unet.out[2].weight.detach(), requires_grad=False)
    studio.warmed(unet)
    assert studio.report.graphs == 0
    assert "its weights are of a class of their own" in studio.report.reasons


def test_an_engine_of_a_machine_without_a_gpu_has_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine_module._launchers() == {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda.memory, "get_allocator_backend", lambda: "cudaMallocAsync")
    assert engine_module._launchers() == {}
    monkeypatch.setattr(torch.cuda.memory, "get_allocator_backend", lambda: "native")
    assert list(engine_module._launchers()) == ["cuda"]
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert engine_module._launchers() == {}
