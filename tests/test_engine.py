"""The engine's life: attached and detached without a trace, and no trouble of ours ever reaches a picture."""

from __future__ import annotations

import copy
import gc
import logging
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ldm.modules.diffusionmodules import openaimodel as ldm_openaimodel
from torch import Tensor, nn

from lib_accel.blocks import res, sample, transformer
from lib_accel.engine import Engine
from tests.fakes.controlnet import FakeLLLite, FakeUNetHook, clear_reference, hook_reference
from tests.fakes.host import FakeHost, attached
from tests.fakes.models import difference, inputs, run, sgm_openaimodel, tiny_sgm_unet, tiny_unet
from tests.test_equality import LIMIT

ALL = 19  # blocks of the tiny UNet, with its own layers before and after them


# Attach and detach


def owners() -> list[type]:
    homes = (ldm_openaimodel, sgm_openaimodel())
    return [getattr(home, name) for home in homes for name in ("TimestepEmbedSequential", "UNetModel")]


def trace_of(unet: nn.Module) -> dict[str, Any]:
    """Everything that an engine could leave behind, by what it is."""
    dynamo = sys.modules.get("torch._dynamo.config")
    return {
        "classes": [(owner, dict(vars(owner))) for owner in owners()],
        "modules": {name: _attributes(module) for name, module in unet.named_modules()},
        "keys": list(unet.state_dict()),
        "dynamo": None if dynamo is None else dynamo.save_config_portable(),
    }


def _attributes(module: nn.Module) -> dict[str, Any]:
    """An instance's attributes, with copies of the dictionaries among them."""
    return {name: dict(value) if isinstance(value, dict) else value for name, value in vars(module).items()}


def bits_of(unet: nn.Module) -> list[bytes]:
    return [each.numpy().tobytes() for each in unet.state_dict().values()]


ORDERS = ["ad", "adad", "aad", "aadd", "dad", "ddad", "adda" + "d", "adaadd"]


@pytest.mark.parametrize("order", ORDERS)
def test_attach_and_detach_in_any_order_leave_no_trace(order: str) -> None:
    unet, engine = tiny_unet(), Engine(FakeHost())
    before, bits = trace_of(unet), bits_of(unet)
    for step in order:
        engine.attach() if step == "a" else engine.detach()
        run(unet, inputs())
    assert _without_tensors(trace_of(unet)) == _without_tensors(before)
    assert bits_of(unet) == bits


def _without_tensors(trace: dict[str, Any]) -> dict[str, Any]:
    """Parameters by identity, as tensors do not compare to one truth."""
    modules = {
        name: {key: _by_identity(value) for key, value in attributes.items()}
        for name, attributes in trace["modules"].items()
    }
    return {**trace, "modules": modules}


def _by_identity(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _by_identity(each) for key, each in value.items()}
    return id(value) if isinstance(value, (Tensor, nn.Module)) else value


@pytest.mark.parametrize("order", ["a", "ada", "aa", "da", "dda", "adda", "addada"])
def test_attached_is_attached_after_any_order(order: str) -> None:
    engine = Engine(FakeHost())
    for step in order:
        engine.attach() if step == "a" else engine.detach()
    try:
        run(tiny_unet(), inputs())
        assert (engine.generation.host, engine.generation.direct) == (0, ALL)
    finally:
        engine.detach()


def test_detached_leaves_no_trace_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = tiny_unet()
    before = _without_tensors(trace_of(unet))
    with attached() as engine:
        hook = unet.middle_block[1].register_forward_pre_hook(_raise(ValueError("host")))
        with pytest.raises(ValueError, match="host"):
            run(unet, inputs())
        hook.remove()
        assert engine.generation.direct > 0
    assert _without_tensors(trace_of(unet)) == before


def test_attaching_leaves_no_trace_on_instances(engine: Engine) -> None:
    unet = tiny_unet()
    before = _without_tensors({"modules": trace_of(unet)["modules"]})
    run(unet, inputs())
    assert _without_tensors({"modules": trace_of(unet)["modules"]}) == before


def test_a_wrap_of_ours_survives_another_attach(engine: Engine) -> None:
    calls, unet = [], tiny_unet()
    with _Wrapped(ldm_openaimodel.TimestepEmbedSequential, calls):
        run(unet, inputs())
        assert len(calls) == 9
        engine.attach()  # as at each load of a model
        run(unet, inputs())
        assert len(calls) == 18
        assert engine.generation.direct == 2 * ALL


def test_a_wrap_of_ours_survives_detaching_and_goes_on_as_stock(engine: Engine) -> None:
    calls, unet = [], tiny_unet()
    with _Wrapped(ldm_openaimodel.TimestepEmbedSequential, calls):
        engine.detach()
        run(unet, inputs())
        assert (len(calls), engine.generation.direct) == (9, 0)
        engine.attach()
        run(unet, inputs())
        assert (len(calls), engine.generation.direct) == (18, ALL)


class _Wrapped:
    """Somebody else's patch of a class, for the block."""

    def __init__(self, owner: Any, calls: list[Any]) -> None:
        self.owner, self.calls = owner, calls

    def __enter__(self) -> None:
        original = self.original = self.owner.forward

        def theirs(block: Any, *args: Any, **kwargs: Any) -> Any:
            self.calls.append(block)
            return original(block, *args, **kwargs)

        self.owner.forward = theirs

    def __exit__(self, *error: object) -> None:
        self.owner.forward = self.original


def test_captured_forwards_go_on_as_stock_after_detaching(host: FakeHost) -> None:
    unet, given = tiny_unet(), inputs(tokens=78)
    plain = given._replace(context=given.context[:, 1:, :])
    stock = run(unet, plain)
    with attached(host) as engine:
        hook = FakeUNetHook(unet, [])
        hook.hook()
        hook_reference([], [unet.middle_block])
        hook.restore()
        clear_reference(unet)
        assert difference(run(unet, plain), stock) <= LIMIT
    assert {"forward"} <= vars(unet).keys() & vars(unet.middle_block).keys()
    engine.begin_generation()
    assert torch.equal(run(unet, plain), stock)
    assert engine.generation.direct == 0


def test_captured_forwards_are_direct_again_after_attaching_anew(engine: Engine) -> None:
    unet = tiny_unet()
    unet.forward = unet.forward
    for block in unet.input_blocks:
        block.forward = block.forward
    engine.detach()
    engine.attach()
    run(unet, inputs())
    assert (engine.generation.host, engine.generation.direct) == (0, ALL)


def test_a_copy_of_a_model_is_a_model_of_its_own(engine: Engine) -> None:
    unet = tiny_unet()
    stock = run(unet, inputs())
    other = copy.deepcopy(unet)
    other.input_blocks[0][0].weight.mul_(2)
    assert difference(run(other, inputs()), stock) > 1e-3
    assert difference(run(unet, inputs()), stock) <= LIMIT


# Failures of ours


def _raise(error: BaseException) -> Callable[..., Any]:
    def raising(*args: Any, **kwargs: Any) -> Any:
        raise error

    return raising


class Fault:
    """Raises in place of one of our functions, as long as `error` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
        self.error: BaseException | None = error
        self._original = sample.upsample
        monkeypatch.setattr(sample, "upsample", self)

    def __call__(self, *args: Any) -> Tensor:
        if self.error is not None:
            raise self.error
        return self._original(*args)


FUNCTIONS = [
    (res, "res_block", "TimestepEmbedSequential"),
    (transformer, "attend", "TimestepEmbedSequential"),
    (sample, "upsample", "TimestepEmbedSequential"),
    (sample, "embed", "UNetModel"),
    (sample, "out_convolution", "UNetModel"),
]


@pytest.mark.parametrize(("home", "name", "owner"), FUNCTIONS)
def test_a_failure_of_ours_gives_the_stock_picture_and_is_logged_once(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    home: Any,
    name: str,
    owner: str,
) -> None:
    unet, given = tiny_unet(), inputs()
    stock = run(unet, given)
    monkeypatch.setattr(home, name, _raise(RuntimeError("kernel is broken")))
    with attached(), caplog.at_level(logging.INFO, "lib_accel"):
        assert difference(run(unet, given), stock) <= LIMIT
        assert difference(run(unet, given), stock) <= LIMIT
    (record,) = caplog.records
    assert f"{owner} failed: RuntimeError: kernel is broken" in record.getMessage()
    assert "Traceback" in record.getMessage()


def test_a_failure_of_ours_is_in_the_report_and_forgiven_by_attach(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, host: FakeHost
) -> None:
    unet = tiny_unet()
    host.live = [("UNet", unet)]
    fault = Fault(monkeypatch, RuntimeError("kernel is broken"))
    run(unet, inputs())
    engine.begin_generation()
    run(unet, inputs())
    assert dict(engine.generation.reasons) == {"failed: RuntimeError: kernel is broken": 3}
    assert "failed: RuntimeError: kernel is broken" in engine.report().models[0].blocks.reasons
    fault.error = None
    engine.attach()
    engine.begin_generation()
    run(unet, inputs())
    assert (engine.generation.host, engine.generation.direct) == (0, ALL)


def test_a_failure_of_the_unets_own_layers_is_in_the_report(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, host: FakeHost
) -> None:
    unet = tiny_unet()
    host.live = [("UNet", unet)]
    monkeypatch.setattr(sample, "embed", _raise(RuntimeError("kernel is broken")))
    run(unet, inputs())
    assert "kernel is broken" in str(engine.report())


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("full"), MemoryError("full")])
def test_running_out_of_memory_is_not_remembered(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, error: Exception
) -> None:
    unet, fault = tiny_unet(), Fault(monkeypatch, error)
    stock = run(unet, inputs())
    fault.error = None
    engine.begin_generation()
    assert difference(run(unet, inputs()), stock) <= LIMIT
    assert (engine.generation.host, engine.generation.direct) == (0, ALL)


def test_memory_of_a_failed_call_is_free_before_the_host_retries(
    monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    ours: list[weakref.ref[Tensor]] = []
    kept: list[bool] = []

    def failing(x: Tensor, *args: Any) -> Tensor:
        intermediate = x + 1
        ours.append(weakref.ref(intermediate))
        raise torch.cuda.OutOfMemoryError("full")

    interpolate = nn.functional.interpolate
    monkeypatch.setattr(sample, "upsample", failing)
    monkeypatch.setattr(
        nn.functional,
        "interpolate",
        lambda *a, **k: kept.append(ours[-1]() is not None) or interpolate(*a, **k),
    )
    run(tiny_unet(), inputs())
    assert kept
    assert not any(kept)


def test_a_failing_call_is_counted_as_the_hosts(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    Fault(monkeypatch, RuntimeError("kernel is broken"))
    run(tiny_unet(), inputs())
    assert (engine.generation.host, engine.generation.direct) == (3, ALL - 3)


# Failures of the host


def test_an_error_of_the_hosts_own_part_comes_out_as_it_is(engine: Engine) -> None:
    unet = tiny_unet()
    cause, error = KeyError("inner"), ValueError("unit ended")
    error.__cause__ = cause
    calls = _count(unet.input_blocks[0])
    unet.middle_block[1].register_forward_pre_hook(_raise(error))
    with pytest.raises(ValueError, match="unit ended") as raised:
        run(unet, inputs())
    assert raised.value is error
    assert len(calls) == 1  # the UNet was not run again


def test_an_error_of_the_hosts_own_part_keeps_its_cause(engine: Engine) -> None:
    unet, cause = tiny_unet(), KeyError("inner")

    def failing(module: nn.Module, args: Any) -> None:
        raise ValueError("unit ended") from cause

    unet.middle_block[1].register_forward_pre_hook(failing)
    with pytest.raises(ValueError, match="unit ended") as raised:
        run(unet, inputs())
    assert raised.value.__cause__ is cause


def test_an_error_that_a_foreign_part_raises_once_is_not_taken_for_ours(engine: Engine) -> None:
    unet, errors = tiny_unet(), [RuntimeError("raised once")]

    def failing(module: nn.Module, args: Any) -> None:
        if errors:
            raise errors.pop()

    hook = unet.middle_block[1].transformer_blocks[0].attn1.to_q.register_forward_pre_hook(failing)
    with pytest.raises(RuntimeError, match="raised once"):
        run(unet, inputs())
    hook.remove()
    engine.begin_generation()
    run(unet, inputs())
    assert (engine.generation.host, engine.generation.direct) == (0, ALL)


def test_an_error_of_the_host_leaves_everything_direct(engine: Engine) -> None:
    unet = tiny_unet()
    hook = unet.middle_block[1].register_forward_pre_hook(_raise(ValueError("unit ended")))
    with pytest.raises(ValueError, match="unit ended"):
        run(unet, inputs())
    hook.remove()
    engine.begin_generation()
    run(unet, inputs())
    assert (engine.generation.host, engine.generation.direct) == (0, ALL)


class Interrupted(BaseException):
    """As the webui's InterruptedException."""


def test_an_interruption_of_the_host_passes_and_nothing_runs_twice(engine: Engine) -> None:
    unet = tiny_unet()
    calls = _count(unet.input_blocks[0])
    hook = unet.middle_block.register_forward_pre_hook(_raise(Interrupted()))
    with pytest.raises(Interrupted):
        run(unet, inputs())
    hook.remove()
    assert len(calls) == 1
    _assert_direct(engine, unet)


def test_an_interruption_of_ours_passes_and_nothing_runs_twice(
    monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    unet, fault = tiny_unet(), Fault(monkeypatch, Interrupted())
    calls = _count(unet.input_blocks[0])
    with pytest.raises(Interrupted):
        run(unet, inputs())
    fault.error = None
    assert len(calls) == 1
    _assert_direct(engine, unet)


def _assert_direct(engine: Engine, unet: nn.Module) -> None:
    engine.begin_generation()
    run(unet, inputs())
    assert (engine.generation.host, engine.generation.direct) == (0, ALL)


def _count(module: nn.Module) -> list[Any]:
    calls: list[Any] = []
    module.register_forward_pre_hook(lambda module, args: calls.append(1))
    return calls


WRONG_CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "nothing": lambda unet, given: unet(),
    "no context": lambda unet, given: unet(given.x, given.timesteps),
    "no timesteps": lambda unet, given: unet(given.x),
    "channels": lambda unet, given: unet(given.x[:, :3], given.timesteps, given.context),
    "a vector": lambda unet, given: unet(given.x, given.timesteps, given.context, torch.ones(2, 20)),
    "a vector by name": lambda unet, given: unet(
        given.x, given.timesteps, given.context, y=torch.ones(2, 20)
    ),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_a_wrong_call_fails_as_it_does_in_stock(host: FakeHost, name: str) -> None:
    unet, given = tiny_unet(), inputs()
    with torch.no_grad(), attached(host):
        ours = _error_of(lambda: WRONG_CALLS[name](unet, given))
        with host.switched_off():
            assert ours == _error_of(lambda: WRONG_CALLS[name](unet, given))
    assert ours is not None


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_vector_of_the_wrong_size_fails_as_it_does_in_stock(host: FakeHost, rows: int) -> None:
    unet, given = tiny_sgm_unet(), inputs(vector=True)
    wrong = given._replace(y=torch.ones(rows, 20) if rows else None)
    with attached(host):
        ours = _error_of(lambda: run(unet, wrong))
        with host.switched_off():
            assert ours == _error_of(lambda: run(unet, wrong))
    assert ours is not None


def _error_of(call: Callable[[], Any]) -> tuple[type, str] | None:
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    return None


# Models come and go


@pytest.mark.parametrize("make", [tiny_unet, tiny_sgm_unet])
def test_a_dropped_model_is_freed(engine: Engine, make: Callable[[], nn.Module]) -> None:
    unet = make()
    run(unet, inputs(vector=make is tiny_sgm_unet))
    assert engine.generation.direct > 0
    freed = weakref.ref(unet), weakref.ref(unet.middle_block), weakref.ref(unet.out[2].weight)
    del unet
    gc.collect()
    assert [each() for each in freed] == [None] * 3


def test_a_dropped_model_is_freed_although_a_patch_of_it_knew_it(engine: Engine) -> None:
    unet, adapter = tiny_unet(), FakeLLLite()
    adapter.hook(unet, unet.middle_block[1].transformer_blocks[0].attn1.to_q)
    run(unet, inputs())
    adapter.clear()
    freed = weakref.ref(unet)
    del unet
    gc.collect()
    assert freed() is None


def test_a_class_that_was_swapped_in_and_out_is_freed(engine: Engine) -> None:
    unet = tiny_unet()
    block = unet.middle_block[1].transformer_blocks[0]
    before = type(block)
    block.__class__ = type("ToMeBlock", (before,), {})
    run(unet, inputs())
    freed = weakref.ref(type(block))
    block.__class__ = before
    run(unet, inputs())
    gc.collect()
    assert freed() is None


def test_weights_of_a_model_moved_to_meta_are_freed_at_once(engine: Engine) -> None:
    unet = tiny_unet()
    run(unet, inputs())
    freed = [weakref.ref(parameter) for parameter in unet.parameters()]
    unet.to("meta")
    gc.collect()
    assert [each() for each in freed if each() is not None] == []


def test_two_models_in_turn_need_no_news(engine: Engine, host: FakeHost) -> None:
    models, given = [tiny_unet(0), tiny_unet(1), tiny_sgm_unet(2)], inputs(vector=True)
    calls = [given._replace(y=None), given._replace(y=None), given]
    for unet, each in zip(models * 2, calls * 2, strict=True):
        ours = run(unet, each)
        with host.switched_off():
            assert difference(ours, run(unet, each)) <= LIMIT
    assert engine.generation.host == 0


def test_a_reload_in_place_is_followed(engine: Engine, host: FakeHost) -> None:
    unet, other, given = tiny_unet(0), tiny_unet(1), inputs()
    run(unet, given)
    unet.load_state_dict(other.state_dict())
    assert difference(run(unet, given), run(other, given)) == 0
    unet.load_state_dict(tiny_unet(2).state_dict(), assign=True)
    assert difference(run(unet, given), run(tiny_unet(2), given)) == 0


def test_threads_do_not_disturb_each_other(engine: Engine) -> None:
    models = [tiny_unet(0), tiny_unet(1), tiny_sgm_unet(2)]
    shared = models[0]
    jobs = [(shared, inputs(1)), (shared, inputs(3, seed=7)), (models[1], inputs(2))]
    jobs.append((models[2], inputs(2, vector=True)))
    engine.detach()
    stock = [run(*job) for job in jobs]
    engine.attach()
    worst = _run_in_threads(jobs, stock)
    assert max(worst) <= LIMIT
    assert engine.generation.host == 0


def _run_in_threads(jobs: list[Any], stock: list[Tensor]) -> list[float]:
    """The largest difference of each job, all of them run five times at once."""
    worst = [float("inf")] * len(jobs)

    def work(index: int) -> None:
        worst[index] = max(difference(run(*jobs[index]), stock[index]) for _ in range(5))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return worst


def test_autocast_of_one_thread_is_not_anothers(engine: Engine) -> None:
    unet, given = tiny_unet(), inputs()
    plain = run(unet, given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run(unet, given)
        assert _run_in_threads([(unet, given)], [plain])[0] <= LIMIT


# Switched off and on


def test_switching_off_gives_the_hosts_bits_and_on_again_ours(engine: Engine, host: FakeHost) -> None:
    unet, given = tiny_unet(), inputs()
    engine.detach()
    stock = run(unet, given)
    engine.attach()
    run(unet, given)
    with host.switched_off():
        engine.begin_generation()
        assert torch.equal(run(unet, given), stock)
        assert (engine.generation.direct, engine.generation.host) == (0, 0)
    run(unet, given)
    assert engine.generation.direct == ALL


@pytest.mark.parametrize("how", ["option", "detach"])
def test_switching_off_in_the_middle_of_a_call_is_safe(engine: Engine, host: FakeHost, how: str) -> None:
    unet, given = tiny_unet(), inputs()
    stock = run(unet, given)
    hook = unet.middle_block.register_forward_pre_hook(lambda module, args: _switch_off(engine, host, how))
    assert difference(run(unet, given), stock) <= LIMIT
    hook.remove()
    engine.begin_generation()
    run(unet, given)
    assert engine.generation.direct == 0


def _switch_off(engine: Engine, host: FakeHost, how: str) -> None:
    if how == "detach":
        engine.detach()
    else:
        host.asked = type(host.asked)(enabled=False)


def test_patches_made_in_the_middle_of_a_call_are_followed_at_the_next(
    engine: Engine, host: FakeHost
) -> None:
    unet, given = tiny_unet(), inputs()
    late = unet.output_blocks[0][0]
    hook = unet.middle_block.register_forward_pre_hook(
        lambda module, args: late.register_forward_hook(lambda module, args, output: output * 2) and None
    )
    first = run(unet, given)
    hook.remove()
    with host.switched_off():
        assert difference(first, run(unet, given)) <= LIMIT


# The report


def test_a_bound_model_is_in_the_report_before_its_first_call(engine: Engine, host: FakeHost) -> None:
    unet = tiny_unet()
    host.live = [("UNet", unet)]
    engine.bind(unet)
    (model,) = engine.report().models
    assert (model.blocks.direct, model.blocks.host, engine.generation.model_calls) == (ALL, 0, 0)


def test_a_report_changes_nothing(engine: Engine, host: FakeHost) -> None:
    unet = tiny_unet()
    host.live = [("UNet", unet)]
    run(unet, inputs())
    assert engine.report() == engine.report()
    assert engine.generation.direct == ALL


def test_counters_start_anew_with_a_generation(engine: Engine) -> None:
    unet = tiny_unet()
    run(unet, inputs())
    run(unet, inputs())
    assert (engine.generation.model_calls, engine.generation.direct) == (2, 2 * ALL)
    engine.begin_generation()
    assert (engine.generation.model_calls, engine.generation.direct) == (0, 0)
