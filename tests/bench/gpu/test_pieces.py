"""The pieces of the suite of GPUs: floors, models, attention, ControlNets, LoRAs, times, counts."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType

from lib_accel.bench.comparison import relative_l2
from lib_accel.bench.gpu import counting as gpu_counting
from lib_accel.bench.gpu import models as gpu_models
from lib_accel.bench.gpu import timing as gpu_timing
from lib_accel.bench.gpu.attention import mixing, sdpa
from lib_accel.bench.gpu.counting import costs, launches
from lib_accel.bench.gpu.deadline import Overdue, deadline
from lib_accel.bench.gpu.floors import CONTROL_MS, FLOORS_MS, case_floor_ms, floor_ms
from lib_accel.bench.gpu.models import FORMS, Form, ModelError, Where, gpu_or_dry, import_packages, model_of
from lib_accel.bench.gpu.networks import Networks
from lib_accel.bench.gpu.parts import AUTO, DIRECT, PARTS, PROFILE, SPEED, WARM_UP, Case
from lib_accel.bench.gpu.profile import _largest, _roofline
from lib_accel.bench.gpu.sides import SIDES, Makers, side
from lib_accel.bench.gpu.stage import Stage, staged
from lib_accel.bench.gpu.timing import Pace, Turn, paired_ms, ratio_figures, run_ms
from lib_accel.bench.timing import ACCELERATED, STOCK
from lib_accel.patching import is_ours

CPU = torch.device("cpu")
TOY = Where(CPU, torch.float32, False, True)
META = Where(torch.device("meta"), torch.float32, False)


@pytest.fixture(scope="module", autouse=True)
def _packages() -> None:
    import_packages()


# Floors, and the sizes that they are of


@pytest.mark.parametrize(
    ("case", "weights"),
    [
        (Case("", "sd15"), 859_520_964),
        (Case("", "sd15", pictures=2), 859_520_964),
        (Case("", "vae", 512), 49_490_179),
        (Case("", "vae", 1024), 49_490_179),
    ],
)
def test_models_at_full_size_need_what_the_table_of_floors_says(case: Case, weights: int) -> None:
    with mixing(sdpa), staged(case, META) as stage:
        counted = costs(stage.call)
    assert sum(each.numel() for each in stage.root.parameters()) == weights
    table = FLOORS_MS[case.model, case.side_px, 1] * case.pictures
    assert floor_ms(sum(counted.flop.values())) == pytest.approx(table, rel=0.01)


def test_a_controlnet_at_full_size_needs_what_the_table_of_floors_says() -> None:
    flop = []
    for count in (0, 1):
        with mixing(sdpa), staged(Case("", "sd15", controls=count), META) as stage:
            flop.append(sum(costs(stage.call).flop.values()))
    assert floor_ms(flop[1] - flop[0]) == pytest.approx(CONTROL_MS, rel=0.02)


def test_a_floor_is_the_tables_or_else_the_longer_of_arithmetic_and_bytes() -> None:
    assert case_floor_ms("sd15", 512, 4, controls=1, flop=1, weight_bytes=1) == (4 * 2.75, "table")
    floor, source = case_floor_ms("sd15", 768, 1, flop=790e9, weight_bytes=4.3e6)
    assert (floor, source.split()[0]) == (pytest.approx(1.0), "counted")
    assert case_floor_ms("text", 0, 1, flop=1, weight_bytes=4.3e9)[0] == pytest.approx(1.0)


# Models and stages


def test_a_package_that_is_missing_is_told_with_where_to_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_models, "FORMS", {**FORMS, "odd": Form("ldm", {}, {})})
    monkeypatch.setattr(gpu_models, "home_of", lambda package: importlib.import_module("no_such_package"))
    with pytest.raises(ModelError, match=r"no_such_package.*docs/gpu-bench\.md"):
        model_of("odd", TOY)


def test_without_a_gpu_only_a_dry_run_can_be_had() -> None:
    assert gpu_or_dry(is_dry=True) == TOY
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="--dry-run"):
            gpu_or_dry(is_dry=False)


def test_a_twin_shares_weights_and_no_module() -> None:
    with staged(Case("", "sd15"), TOY) as stage:
        twin = stage.twin()
    assert [id(each) for each in twin.root.parameters()] == [id(each) for each in stage.root.parameters()]
    assert not set(map(id, twin.root.modules())) & set(map(id, stage.root.modules()))


def test_a_stage_is_called_under_autocast_where_there_is_to_be_one() -> None:
    seen: list[bool] = []
    with staged(Case("", "vae"), TOY._replace(autocast=True)) as stage:
        stage.root["model"].register_forward_pre_hook(
            lambda model, given: seen.append(torch.is_autocast_enabled("cpu"))
        )
        result = stage.call()
    assert (seen, result.dtype) == ([True], torch.bfloat16)


def test_under_autocast_ours_is_as_near_to_stock_as_half_precision_lets_it() -> None:
    with mixing(sdpa), staged(Case("", "sd15"), TOY._replace(autocast=True)) as stage:
        stock = stage.call()
        one = side(DIRECT, stage, Makers())
        try:
            with one.turn() as call:
                ours = call()
                blocks: Any = one.about()["blocks"]
        finally:
            one.close()
    assert blocks["host"] == 0 < blocks["direct"]
    assert relative_l2(ours, stock) < 2e-2


def test_stock_has_nothing_of_ours_in_its_turn() -> None:
    with mixing(sdpa), staged(Case("", "sd15"), TOY) as stage:
        one: Any = side(DIRECT, stage, Makers())
        try:
            kind: Any = type(stage.root["model"])
            ours = kind.forward
            assert is_ours(ours)
            with one.away():
                assert not is_ours(kind.forward)
            assert kind.forward is ours
        finally:
            one.close()
    assert not is_ours(kind.forward)


@pytest.mark.parametrize("model", ["sd15", "vae"])
def test_attention_is_replaced_by_one_that_gives_the_same_and_then_put_back(model: str) -> None:
    attention: Any = importlib.import_module("ldm.modules.attention").CrossAttention
    before = attention.forward
    with staged(Case("", model), TOY) as stage:
        plain = stage.call()
        with mixing(sdpa):
            assert attention.forward is not before
            replaced = stage.call()
    assert attention.forward is before
    assert 0 < relative_l2(replaced, plain) < 1e-4 or torch.equal(replaced, plain)


def test_attention_that_is_replaced_is_called() -> None:
    def nothing(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(q)

    with staged(Case("", "vae"), TOY) as stage:
        plain = stage.call()
        with mixing(nothing):
            assert relative_l2(stage.call(), plain) > 1e-3


def test_controlnets_change_what_the_unet_gives() -> None:
    results = []
    for count in (0, 1, 2):
        with staged(Case("", "sd15", controls=count), TOY) as stage:
            results.append(stage.call())
    assert relative_l2(results[1], results[0]) > 1e-2
    assert relative_l2(results[2], results[1]) > 1e-2


def test_without_a_control_the_loop_of_blocks_gives_what_the_unet_gives() -> None:
    from lib_accel.bench.gpu.controls import controlled

    with staged(Case("", "sd15", controls=1), TOY) as stage:
        expected = Stage(
            stage.case, TOY, nn.ModuleDict({"model": stage.root["model"]}), stage.given, None
        ).call()
        control: Any = stage.root["control0"]
        for part in (*control.zero_convs, control.middle_block_out):
            part[0].weight.data.zero_()
            part[0].bias.data.zero_()
        x, timesteps, context, _, hint = stage.given
        assert timesteps is not None
        assert context is not None
        assert hint is not None
        with torch.no_grad():
            looped = controlled(stage.root["model"], [control], x, hint, timesteps, context)
    assert torch.allclose(looped, expected, atol=1e-5)


# LoRAs


def test_loras_change_weights_alike_in_both_ways_and_come_off_to_the_bit() -> None:
    model = model_of("sd15", TOY)
    networks = Networks(model, 4)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    networks.wear(4)
    once = {name: weight.clone() for name, weight in model.named_parameters()}
    changed = [name for name in before if not torch.equal(before[name], once[name])]
    assert len(changed) == 4 * 12  # transformers, each with two projections and ten linear layers
    assert all("transformer_blocks" in name or "proj_" in name for name in changed)
    networks.merge_one_by_one(4)
    assert all(torch.allclose(once[name], weight, atol=1e-6) for name, weight in model.named_parameters())
    assert not networks.is_pristine()
    networks.wear(0)
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())


def test_layers_are_written_only_where_they_do_not_carry_what_is_worn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of("sd15", TOY)
    networks = Networks(model, 1)
    networks.wear(1)
    written: list[int] = []
    monkeypatch.setattr(networks, "_write", written.append)
    networks.apply(list(model.modules()))
    assert not written
    networks.worn = 0
    networks.apply(list(model.modules()))
    assert len(written) == 48


# Times


def test_sides_are_timed_in_turn_each_in_its_own_place() -> None:
    order: list[str] = []

    def turn(name: str) -> Turn:
        return Turn.of(lambda: order.append(name))

    times = paired_ms(turn("a"), turn("b"), CPU, Pace(pairs=2, run_ms=0.0))
    assert "".join(order[4:]) == "aabbbbaa"  # a call to settle before each that is timed
    assert {name: len(each) for name, each in times.items()} == {STOCK: 2, ACCELERATED: 2}


def test_short_calls_are_timed_together_but_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_timing, "run_ms", lambda call, device, calls: 10.0)
    calls = [gpu_timing._calls(Turn.of(lambda: None), CPU, Pace(run_ms=ms)) for ms in (5.0, 100.0, 1000.0)]
    assert calls == [1, 10, 20]


def test_a_ratio_is_that_of_pairs_and_above_one_where_ours_is_faster() -> None:
    figures = ratio_figures({STOCK: [2.0, 4.0, 30.0], ACCELERATED: [1.0, 2.0, 10.0]})
    assert (figures["ratio"], figures["ratio_low95"], figures["ratio_high95"]) == (2.0, 2.0, 3.0)
    assert (figures["ms"], figures["stock_ms"]) == (2.0, 4.0)


def test_a_gpu_is_asked_by_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            told.append("event")

        def elapsed_time(self, other: Event) -> float:
            return 12.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: told.append("wait"))
    assert run_ms(lambda: told.append("call"), torch.device("cuda"), 3) == 4.0
    assert told == ["wait", "event", "call", "call", "call", "event", "wait"]


def test_a_deadline_passes_by_those_who_catch_everything_and_is_over_afterwards() -> None:
    import signal
    import time

    def side() -> None:
        try:
            time.sleep(5)
        except Exception:
            pytest.fail("caught as if it were the side's own")

    with pytest.raises(Overdue), deadline(0.05):
        side()
    with deadline(60):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 50
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


# Counts


def test_costs_are_those_of_the_operations_and_views_cost_nothing() -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    counted = costs(lambda: (a @ b).view(21).t())
    assert (counted.calls, counted.flop) == ({"aten.mm": 1}, {"aten.mm": 2 * 3 * 5 * 7})
    assert counted.bytes == {"aten.mm": 4 * (15 + 35 + 21)}


def test_launches_on_a_cpu_are_operations_unless_there_are_none_to_see() -> None:
    a = torch.ones(3)
    told = launches(lambda: a.add(a).mul(a), CPU, has_operations=True)
    assert (told["launches"], told["counted"]) == (2, "operations")
    other = launches(lambda: a.mul(a).add(a), CPU, has_operations=True)
    assert other["operations_list"] != told["operations_list"]
    assert launches(lambda: a, CPU, has_operations=False)["launches"] is None


def _event(name: str, **values: Any) -> Any:
    plain = {
        "device_type": DeviceType.CPU,
        "cpu_parent": None,
        "device_time_total": 0.0,
        "cpu_time_total": 0.0,
    }
    return SimpleNamespace(name=name, **{**plain, **values})


def _kernel(name: str, start: float, us: float = 10.0) -> Any:
    span = SimpleNamespace(start=start, elapsed_us=lambda: us)
    return _event(name, device_type=DeviceType.CUDA, time_range=span)


EVENTS = [
    _event("cudaLaunchKernel"),
    _event("cuLaunchKernelEx"),
    _event("cudaGraphLaunch"),
    _event("cudaMemcpyAsync"),
    _kernel("late", 3.0),
    _kernel("Memcpy DtoD", 2.0),
    _kernel("early", 1.0),
]


def test_launches_on_a_gpu_are_kernels_and_graphs_that_the_program_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_counting, "profiled", lambda call, device, calls: EVENTS)
    told = launches(lambda: None, torch.device("cuda"), has_operations=False)
    assert (told["launches"], told["graph_launches"], told["kernels"]) == (3, 1, 2)
    assert [each.name for each in gpu_counting.kernels_of(EVENTS)] == ["early", "late"]


def test_a_profiler_that_sees_no_kernel_is_told_and_nothing_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_counting, "profiled", lambda call, device, calls: EVENTS[:4])
    told = launches(lambda: None, torch.device("cuda"), has_operations=False)
    assert (told["launches"], told["counted"]) == (None, "the profiler saw no kernel")


def test_the_largest_kernels_are_those_of_most_time_in_all() -> None:
    ran = [
        _kernel(name, 0.0, us) for name, us in (("a", 30.0), ("b", 20.0), ("b", 25.0), ("c", 5.0), ("d", 6.0))
    ]
    largest = _largest(ran, torch.device("cuda"), 86.0 / 3000)
    assert [each["kernel"] for each in largest] == ["b", "a", "d"]
    assert largest[0]["share"] == pytest.approx(45 / 86)


def test_an_operation_has_the_time_of_what_it_calls_and_that_has_none_of_its_own() -> None:
    outer = _event("aten::convolution", device_time_total=3000.0)
    inner = _event(
        "aten::copy_", cpu_parent=_event("aten::_convolution", cpu_parent=outer), device_time_total=900.0
    )
    calls = {"aten.convolution": 1, "aten.copy_": 1}
    counted = SimpleNamespace(calls=calls, flop=dict.fromkeys(calls, 79e9), bytes=dict.fromkeys(calls, 0.0))
    (row,) = _roofline([outer, inner], counted, torch.device("cuda"))
    assert (row["operation"], row["ms"]) == ("aten.convolution", pytest.approx(1.0))
    assert row["floor_share"] == pytest.approx(0.1)


# Parts


def test_every_side_of_every_part_is_known_and_no_row_has_two_names() -> None:
    of_models = [part for part in PARTS.values() if part.kind in (SPEED, PROFILE, WARM_UP)]
    assert {side for part in of_models for side in part.sides} == set(SIDES)
    assert all(case.model in FORMS for part in of_models for case in part.cases)
    for part in PARTS.values():
        names = [(case.name, side) for case, side in part.rows()]
        assert len(set(names)) == len(names)
        assert all(" / " not in text for name in names for text in name)


def test_operators_are_measured_ahead_at_the_sizes_of_rows_that_want_them() -> None:
    warm = {(case.model, case.side_px, case.pictures) for case in PARTS["warm-up"].cases}
    wanted = [part for part in PARTS.values() if AUTO in part.sides]
    assert {
        (case.model, case.side_px, case.pictures)
        for part in wanted
        for case in part.cases
        if case.model != "text"
    } == warm


def test_the_cases_are_those_that_the_targets_name() -> None:
    assert [case.pictures for case in PARTS["sd15"].cases] == [1, 2, 4, 8]
    assert [case.side_px for case in PARTS["sd15-sizes"].cases] == [768, 1024]
    assert [case.networks for case in PARTS["loras"].cases] == [0, 1, 4, 16]
    assert [case.controls for case in PARTS["controlnet"].cases] == [0, 1, 2]
    assert [case.side_px for case in PARTS["vae"].cases] == [512, 1024]
