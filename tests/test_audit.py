"""Whatever others change of a live model, the picture follows, and only what they touched falls back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple

import pytest
import torch
from ldm.modules import attention as ldm_attention
from ldm.modules.diffusionmodules import openaimodel as ldm_openaimodel
from ldm.modules.diffusionmodules import util as ldm_util
from torch import Tensor, nn

from lib_accel.blocks import transformer
from lib_accel.engine import Engine
from lib_accel.report import Generation
from tests.fakes.controlnet import FakeIPAdapter, FakeLLLite, clear_reference, hook_reference
from tests.fakes.host import FakeHost, attached
from tests.fakes.models import difference, inputs, run, tiny_sgm_unet, tiny_unet
from tests.test_equality import LIMIT

RES_BLOCKS, TRANSFORMERS, BLOCKS = 8, 7, 18  # of the tiny UNet
ALL = BLOCKS + 1  # with the UNet's own layers before and after them

Undo = Callable[[], object]


class Change(NamedTuple):
    """Something that somebody does to a UNet, and what it costs."""

    apply: Callable[[Any], Undo]  # returns its undo
    blocks: int  # how many of the UNet's blocks run as the host's modules meanwhile
    reason: str = ""  # part of the reason that the report gives


# Where changes are made


def block_of(unet: Any) -> Any:
    return unet.input_blocks[1][1].transformer_blocks[0]


def res_of(unet: Any) -> Any:
    return unet.input_blocks[3][0]


PLACES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "norm1": (lambda unet: block_of(unet).norm1, "attn1: LayerNorm"),
    "to_q": (lambda unet: block_of(unet).attn1.to_q, "attn1: Linear"),
    "to_k": (lambda unet: block_of(unet).attn2.to_k, "attn2: Linear"),
    "to_out": (lambda unet: block_of(unet).attn2.to_out, "attn2: Sequential"),
    "dropout": (lambda unet: block_of(unet).attn2.to_out[1], "attn2: Dropout"),
    "attn1": (lambda unet: block_of(unet).attn1, "attn1: CrossAttention"),
    "attn2": (lambda unet: block_of(unet).attn2, "attn2: CrossAttention"),
    "norm3": (lambda unet: block_of(unet).norm3, "ff: LayerNorm"),
    "ff": (lambda unet: block_of(unet).ff, "ff: FeedForward"),
    "net": (lambda unet: block_of(unet).ff.net, "ff: Sequential"),
    "geglu": (lambda unet: block_of(unet).ff.net[0], "ff: GEGLU"),
    "geglu proj": (lambda unet: block_of(unet).ff.net[0].proj, "ff: Linear"),
    "block": (block_of, "BasicTransformerBlock"),
    "transformer": (lambda unet: unet.input_blocks[1][1], "SpatialTransformer"),
    "norm": (lambda unet: unet.input_blocks[1][1].norm, "GroupNorm"),
    "proj_in": (lambda unet: unet.input_blocks[1][1].proj_in, "Conv2d"),
    "proj_out": (lambda unet: unet.input_blocks[1][1].proj_out, "Conv2d"),
    "res": (res_of, "ResBlock"),
    "in_layers": (lambda unet: res_of(unet).in_layers, "Sequential"),
    "norm_in": (lambda unet: res_of(unet).in_layers[0], "GroupNorm32"),
    "silu": (lambda unet: res_of(unet).in_layers[1], "SiLU"),
    "conv_in": (lambda unet: res_of(unet).in_layers[2], "Conv2d"),
    "emb_layers": (lambda unet: res_of(unet).emb_layers[1], "Linear"),
    "conv_out": (lambda unet: res_of(unet).out_layers[3], "Conv2d"),
    "skip": (lambda unet: res_of(unet).skip_connection, "Conv2d"),
    "identity": (lambda unet: unet.middle_block[0].skip_connection, "Identity"),
    "first conv": (lambda unet: unet.input_blocks[0][0], "Conv2d"),
    "down": (lambda unet: unet.input_blocks[2][0], "Downsample"),
    "down op": (lambda unet: unet.input_blocks[2][0].op, "Conv2d"),
    "up": (lambda unet: unet.output_blocks[1][2], "Upsample"),
    "up conv": (lambda unet: unet.output_blocks[1][2].conv, "Conv2d"),
}

# Ways to change a module


def own_forward(module: Any, name: str = "forward") -> Undo:
    """An instance's own method; undone as other extensions do it, by assigning what was there."""
    captured = getattr(module, name)
    setattr(module, name, lambda *args, **kwargs: captured(*args, **kwargs) * 1.25)
    return lambda: setattr(module, name, captured)


def forward_hook(module: Any) -> Undo:
    return module.register_forward_hook(lambda module, args, output: output * 1.25).remove


def pre_hook(module: Any) -> Undo:
    return module.register_forward_pre_hook(lambda module, args: (args[0].flip(1), *args[1:])).remove


def kwargs_hook(module: Any) -> Undo:
    hook = module.register_forward_hook(lambda module, args, kwargs, output: output * 1.25, with_kwargs=True)
    return hook.remove


def own_conv_forward(module: Any) -> Undo:
    """What extensions for tiling in one direction do."""

    def wrapped(self: Any, given: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padded = nn.functional.pad(given, (1, 1, 0, 0), mode="circular")
        return nn.functional.conv2d(nn.functional.pad(padded, (0, 0, 1, 1)), weight, bias, self.stride)

    module._conv_forward = MethodType(wrapped, module)
    return lambda: delattr(module, "_conv_forward")


def other_class(module: Any, **methods: Any) -> Undo:
    before = type(module)
    module.__class__ = type("Patched" + before.__name__, (before,), methods)
    return lambda: setattr(module, "__class__", before)


def child_replaced(parent: Any, name: str, child: nn.Module | None) -> Undo:
    before = parent._modules[name]
    setattr(parent, name, child)
    return lambda: setattr(parent, name, before)


def child_added(parent: Any, child: nn.Module) -> Undo:
    name = str(len(parent))
    parent.add_module(name, child)
    return lambda: delattr(parent, name)


def attribute_set(owner: Any, name: str, value: Any) -> Undo:
    """Also for classes; puts back what was there, or nothing if nothing was."""
    was_own, before = name in vars(owner), getattr(owner, name, None)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before) if was_own else delattr(owner, name)


def class_method(owner: type, name: str = "forward") -> Undo:
    original = getattr(owner, name)
    return attribute_set(owner, name, lambda self, *args, **kw: original(self, *args, **kw) * 1.25)


def ip_adapter(unet: Any) -> Undo:
    adapter = FakeIPAdapter()
    adapter.hook(block_of(unet).attn2)
    return adapter.clear


def lllite(unet: Any) -> Undo:
    adapter = FakeLLLite()
    adapter.hook(unet, block_of(unet).attn1.to_k)
    return adapter.clear


def reference(unet: Any) -> Undo:
    hook_reference([block_of(unet)], [])
    return lambda: clear_reference(unet)


def adain(unet: Any) -> Undo:
    hook_reference([], [unet.middle_block])
    return lambda: clear_reference(unet)


def tome(unet: Any) -> Undo:
    def merging(self: Any, x: Tensor, context: Any = None) -> Tensor:
        normed = self.norm1(x)
        merged = normed.unflatten(1, (-1, 2)).mean(2).repeat_interleave(2, dim=1)
        x = self.attn1(merged) + x
        x = self.attn2(self.norm2(x), context=context) + x
        return self.ff(self.norm3(x)) + x

    return other_class(block_of(unet), _forward=merging)


class LinearWithDelta(nn.Module):
    """A leaf of a foreign type around the original one."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.5 * x


class Scale(nn.Module):
    """A block that no family knows."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1.25


class PatchedLinear(nn.Linear):
    def forward(self, given: Tensor) -> Tensor:
        return super().forward(given) * 1.25


CHANGES: dict[str, Change] = {
    **{
        f"own forward: {place}": Change(
            lambda unet, find=find: own_forward(find(unet)), 1, f"{reason} has a forward of its own"
        )
        for place, (find, reason) in PLACES.items()
    },
    **{
        f"hook: {place}": Change(
            lambda unet, find=find: forward_hook(find(unet)), 1, f"{reason} has a forward hook"
        )
        for place, (find, reason) in PLACES.items()
    },
    **{
        f"pre-hook: {place}": Change(
            lambda unet, find=PLACES[place][0]: pre_hook(find(unet)), 1, "has a forward hook"
        )
        for place in ("to_q", "attn1", "ff", "transformer", "res", "conv_in", "down")
    },
    "hook with kwargs": Change(lambda unet: kwargs_hook(block_of(unet).attn2), 1, "attn2: CrossAttention"),
    "IP-Adapter": Change(ip_adapter, 1, "attn2: CrossAttention has a forward of its own"),
    "LLLite": Change(lllite, 1, "attn1: Linear has a forward of its own"),
    "reference-only": Change(reference, 1, "BasicTransformerBlock has a _forward of its own"),
    "own _forward of a ResBlock": Change(
        lambda unet: own_forward(res_of(unet), "_forward"), 1, "ResBlock has a _forward of its own"
    ),
    "adain": Change(adain, 0),  # calls the class's forward, which is ours, and changes its result
    "tiling in one direction": Change(lambda unet: own_conv_forward(res_of(unet).in_layers[2]), 1, "Conv2d"),
    "ToMe": Change(tome, 1, "PatchedBasicTransformerBlock"),
    "class of a leaf": Change(
        lambda unet: attribute_set_class(block_of(unet).ff.net[2], PatchedLinear), 1, "PatchedLinear"
    ),
    "foreign leaf": Change(
        lambda unet: child_replaced(block_of(unet).attn1, "to_q", LinearWithDelta(block_of(unet).attn1.to_q)),
        1,
        "attn1: found tests.test_audit.LinearWithDelta",
    ),
    "child added to ff": Change(
        lambda unet: child_added(block_of(unet).ff.net, Scale()),
        1,
        "ff: torch.nn.modules.container.Sequential",
    ),
    "unknown block added": Change(
        lambda unet: child_added(unet.middle_block, Scale()), 4, "unknown block tests.test_audit.Scale"
    ),
    "SiLU added": Change(lambda unet: child_added(unet.middle_block, nn.SiLU()), 0),
    "leaf replaced by its like": Change(
        lambda unet: child_replaced(block_of(unet).attn1, "to_q", block_of(tiny_unet(3)).attn1.to_q), 0
    ),
    "block replaced by its like": Change(
        lambda unet: child_replaced(unet.middle_block, "1", tiny_unet(3).middle_block[1]), 0
    ),
    "container replaced by its like": Change(
        lambda unet: child_replaced(unet, "middle_block", tiny_unet(3).middle_block), 0
    ),
    "block deleted": Change(lambda unet: child_deleted(unet.middle_block, "2"), 0),
    "Linear.forward": Change(
        lambda unet: class_method(nn.Linear), RES_BLOCKS + TRANSFORMERS + 1, "Linear.forward was replaced"
    ),
    "Conv2d.forward": Change(lambda unet: class_method(nn.Conv2d), ALL, "Conv2d.forward was replaced"),
    "LayerNorm.forward": Change(
        lambda unet: class_method(nn.LayerNorm), TRANSFORMERS, "LayerNorm.forward was replaced"
    ),
    "GroupNorm.forward": Change(
        lambda unet: class_method(nn.GroupNorm),
        RES_BLOCKS + TRANSFORMERS + 1,
        "GroupNorm.forward was replaced",
    ),
    "GroupNorm32.forward": Change(
        lambda unet: class_method(ldm_util.GroupNorm32), RES_BLOCKS + 1, "GroupNorm32.forward was replaced"
    ),
    "Conv2d._conv_forward": Change(
        lambda unet: class_method(nn.Conv2d, "_conv_forward"), ALL, "_conv_forward"
    ),
    "SiLU.forward": Change(lambda unet: class_method(nn.SiLU), RES_BLOCKS + 1, "SiLU.forward was replaced"),
    "Sequential.forward": Change(
        lambda unet: class_method(nn.Sequential),
        RES_BLOCKS + TRANSFORMERS + 1,
        "Sequential.forward was replaced",
    ),
    "CrossAttention.forward": Change(
        lambda unet: class_method(ldm_attention.CrossAttention), TRANSFORMERS, "CrossAttention.forward was"
    ),
    "FeedForward.forward": Change(
        lambda unet: class_method(ldm_attention.FeedForward), TRANSFORMERS, "ff: FeedForward.forward was"
    ),
    "GEGLU.forward": Change(
        lambda unet: class_method(ldm_attention.GEGLU), TRANSFORMERS, "ff: GEGLU.forward was replaced"
    ),
    "BasicTransformerBlock._forward": Change(
        lambda unet: class_method(ldm_attention.BasicTransformerBlock, "_forward"),
        TRANSFORMERS,
        "BasicTransformerBlock._forward was replaced",
    ),
    "BasicTransformerBlock.forward": Change(
        lambda unet: class_method(ldm_attention.BasicTransformerBlock), TRANSFORMERS, "forward was replaced"
    ),
    "SpatialTransformer.forward": Change(
        lambda unet: class_method(ldm_attention.SpatialTransformer), TRANSFORMERS, "forward was replaced"
    ),
    "ResBlock.forward": Change(
        lambda unet: class_method(ldm_openaimodel.ResBlock), RES_BLOCKS, "ResBlock.forward was replaced"
    ),
    "ResBlock._forward": Change(
        lambda unet: class_method(ldm_openaimodel.ResBlock, "_forward"), RES_BLOCKS, "ResBlock._forward was"
    ),
    "ResBlock.__call__": Change(
        lambda unet: class_method(ldm_openaimodel.ResBlock, "__call__"), RES_BLOCKS, "__call__ was replaced"
    ),
    "Upsample.forward": Change(
        lambda unet: class_method(ldm_openaimodel.Upsample), 1, "Upsample.forward was"
    ),
    "TimestepEmbedSequential.forward": Change(
        lambda unet: class_method(ldm_openaimodel.TimestepEmbedSequential), 0
    ),
    "UNetModel.forward": Change(lambda unet: class_method(ldm_openaimodel.UNetModel), 0),
    "circular padding": Change(
        lambda unet: attribute_set(res_of(unet).in_layers[2], "padding_mode", "circular"), 0
    ),
    "reflecting padding": Change(
        lambda unet: attribute_set(res_of(unet).in_layers[2], "padding_mode", "reflect"), 1, "Conv2d pads by"
    ),
    "Parameter replaced": Change(
        lambda unet: attribute_set_parameter(
            block_of(unet).attn1.to_q, "weight", lambda w: nn.Parameter(w * 2)
        ),
        0,
    ),
    "data swapped": Change(lambda unet: data_swapped(res_of(unet).in_layers[2].weight), 0),
    "in-place copy": Change(lambda unet: copied_in_place(res_of(unet).in_layers[2].weight), 0),
    "bias given to a layer without": Change(
        lambda unet: attribute_set_parameter(
            block_of(unet).attn1.to_v, "bias", lambda bias: nn.Parameter(torch.linspace(-1, 1, 64))
        ),
        0,
    ),
    "bias taken": Change(
        lambda unet: attribute_set_parameter(res_of(unet).in_layers[2], "bias", lambda bias: None), 0
    ),
    "out: hook": Change(lambda unet: forward_hook(unet.out[2]), 1, "Conv2d has a forward hook"),
    "out: own forward": Change(lambda unet: own_forward(unet.out), 1, "Sequential has a forward of its own"),
    "time_embed: hook": Change(lambda unet: forward_hook(unet.time_embed[0]), 1, "Linear has a forward hook"),
    "time_embed: replaced": Change(
        lambda unet: child_replaced(unet, "time_embed", tiny_unet(3).time_embed), 0
    ),
    "out: padding": Change(lambda unet: attribute_set(unet.out[2], "padding_mode", "circular"), 0),
    "block hook": Change(lambda unet: forward_hook(unet.middle_block), 0),
    "parametrization": Change(lambda unet: parametrized(block_of(unet).attn1.to_q), 1, "attn1: found"),
}


def attribute_set_class(module: Any, kind: type) -> Undo:
    before = type(module)
    module.__class__ = kind
    return lambda: setattr(module, "__class__", before)


def child_deleted(parent: Any, name: str) -> Undo:
    child = parent._modules[name]
    delattr(parent, name)
    return lambda: parent.add_module(name, child)


def attribute_set_parameter(layer: Any, name: str, make: Callable[[Any], Any]) -> Undo:
    before = getattr(layer, name)
    with torch.no_grad():
        setattr(layer, name, make(before))
    return lambda: setattr(layer, name, before)


def data_swapped(parameter: Any) -> Undo:
    before = parameter.data
    parameter.data = before.flip(0)
    return lambda: setattr(parameter, "data", before)


def copied_in_place(parameter: Any) -> Undo:
    before = parameter.clone()
    parameter.copy_(before.flip(0))
    return lambda: parameter.copy_(before)


def parametrized(layer: Any) -> Undo:
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", Scale())
    return lambda: torch.nn.utils.parametrize.remove_parametrizations(
        layer, "weight", leave_parametrized=False
    )


class Seen(NamedTuple):
    """What a change did."""

    before: Tensor
    ours: Tensor
    stock: Tensor
    generation: Generation


def watch(engine: Engine, host: FakeHost, unet: Any, change: Callable[[Any], Undo]) -> Seen:
    """One picture before a change; then, with the change, one by us and one with the engine off."""
    given = inputs()
    before = run(unet, given)
    undo = change(unet)
    try:
        engine.begin_generation()
        ours, generation = run(unet, given), engine.generation
        with host.switched_off():
            return Seen(before, ours, run(unet, given), generation)
    finally:
        undo()
        engine.begin_generation()


class Outcome(NamedTuple):
    """A change that was made and undone."""

    seen: Seen
    after: Tensor
    generation_after: Generation


@functools.cache
def outcome(name: str) -> Outcome:
    """Makes and undoes a change once for all tests that look at it."""
    unet, host = tiny_unet(), FakeHost()
    with attached(host) as engine:
        seen = watch(engine, host, unet, CHANGES[name].apply)
        return Outcome(seen, run(unet, inputs()), engine.generation)


@pytest.mark.parametrize("name", CHANGES)
def test_picture_follows_a_change_at_once(name: str) -> None:
    seen = outcome(name).seen
    assert difference(seen.stock, seen.before) > 1e-4
    assert difference(seen.ours, seen.stock) <= LIMIT


@pytest.mark.parametrize("name", CHANGES)
def test_only_what_was_changed_falls_back_and_the_report_says_why(name: str) -> None:
    change, generation = CHANGES[name], outcome(name).seen.generation
    assert generation.host == change.blocks, generation.reasons
    assert generation.direct >= ALL - 1 - change.blocks
    assert [reason for reason in generation.reasons if change.reason not in reason] == []
    assert bool(generation.reasons) == bool(change.blocks)


@pytest.mark.parametrize("name", CHANGES)
def test_everything_is_direct_again_after_a_change_is_undone(name: str) -> None:
    seen, after, generation = outcome(name)
    assert difference(after, seen.before) <= LIMIT
    assert (generation.host, generation.direct) == (0, ALL)


@pytest.mark.parametrize(
    ("change", "attends", "feeds"),
    [
        (ip_adapter, 2 * TRANSFORMERS - 1, TRANSFORMERS),
        (lllite, 2 * TRANSFORMERS - 1, TRANSFORMERS),
        (lambda unet: own_forward(block_of(unet).ff), 2 * TRANSFORMERS, TRANSFORMERS - 1),
        (reference, 2 * TRANSFORMERS - 2, TRANSFORMERS - 1),
    ],
)
def test_a_transformer_falls_back_part_by_part(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Undo], attends: int, feeds: int
) -> None:
    counts = {name: _count_calls(monkeypatch, name) for name in ("attend", "feed_forward", "enter")}
    unet = tiny_unet()
    with attached():
        undo = change(unet)
        run(unet, inputs())
        undo()
    assert {name: len(calls) for name, calls in counts.items()} == {
        "attend": attends,
        "feed_forward": feeds,
        "enter": TRANSFORMERS,
    }


def _count_calls(monkeypatch: pytest.MonkeyPatch, name: str) -> list[object]:
    calls: list[object] = []
    original = getattr(transformer, name)

    def counting(*args: Any) -> Tensor:
        calls.append(None)
        return original(*args)

    monkeypatch.setattr(transformer, name, counting)
    return calls


def test_children_deleted_as_for_ssd_1b_are_left_out(engine: Engine, host: FakeHost) -> None:
    unet, given = tiny_sgm_unet(), inputs(vector=True)
    before = run(unet, given)
    del unet.input_blocks[3][1].transformer_blocks[1]
    delattr(unet.middle_block, "1")
    delattr(unet.middle_block, "2")
    engine.begin_generation()
    ours = run(unet, given)
    assert engine.generation.host == 0
    with host.switched_off():
        assert difference(ours, run(unet, given)) <= LIMIT
    assert difference(ours, before) > 1e-3


def test_a_trusted_forward_of_a_class_stays_direct(engine: Engine, host: FakeHost) -> None:
    original = ldm_attention.CrossAttention.forward

    def optimized(self: Any, x: Tensor, context: Any = None, mask: Any = None) -> Tensor:
        return original(self, x, context, mask)

    host.trusted.append(optimized)
    change = lambda unet: attribute_set(ldm_attention.CrossAttention, "forward", optimized)  # noqa: E731
    seen = watch(engine, host, tiny_unet(), change)
    assert (seen.generation.host, seen.generation.direct) == (0, ALL)
    assert difference(seen.ours, seen.stock) <= LIMIT


def test_a_trusted_forward_of_an_instance_stays_direct(engine: Engine, host: FakeHost) -> None:
    def change(unet: Any) -> Undo:
        captured = block_of(unet).attn1.forward

        def passing_on(*args: Any, **kwargs: Any) -> Tensor:
            return captured(*args, **kwargs)

        host.trusted.append(passing_on)
        return attribute_set(block_of(unet).attn1, "forward", passing_on)

    assert watch(engine, host, tiny_unet(), change).generation.host == 0


def test_a_forward_that_only_claims_to_be_the_class_own_is_not_trusted(
    engine: Engine, host: FakeHost
) -> None:
    original = ldm_attention.CrossAttention.forward

    @functools.wraps(original)
    def disguised(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return original(self, *args, **kwargs) * 1.25

    change = lambda unet: attribute_set(ldm_attention.CrossAttention, "forward", disguised)  # noqa: E731
    seen = watch(engine, host, tiny_unet(), change)
    assert seen.generation.host == TRANSFORMERS
    assert difference(seen.ours, seen.stock) <= LIMIT


def test_a_method_bound_to_another_instance_is_not_plain(engine: Engine, host: FakeHost) -> None:
    def change(unet: Any) -> Undo:
        other = block_of(tiny_unet(9)).attn1
        return attribute_set(block_of(unet).attn1, "forward", other.forward)

    seen = watch(engine, host, tiny_unet(), change)
    assert difference(seen.ours, seen.stock) <= LIMIT
    assert seen.generation.host == 1


def test_attention_that_the_host_holds_back_is_the_hosts(engine: Engine, host: FakeHost) -> None:
    def change(unet: Any) -> Undo:
        host.attention.append("a hypernetwork is active")
        return host.attention.clear

    generation = watch(engine, host, tiny_unet(), change).generation
    assert generation.host == TRANSFORMERS
    assert dict(generation.reasons) == {"a hypernetwork is active": TRANSFORMERS}


def test_a_host_that_stands_aside_gets_its_own_modules(engine: Engine, host: FakeHost) -> None:
    def change(unet: Any) -> Undo:
        host.stand_aside.append("fp8")
        return host.stand_aside.clear

    seen = watch(engine, host, tiny_unet(), change)
    assert torch.equal(seen.ours, seen.stock)
    assert dict(seen.generation.reasons) == {"fp8": ALL}
    assert seen.generation.direct == 0


def test_gradients_keep_the_hosts_modules(engine: Engine) -> None:
    unet, given = tiny_unet(), inputs()
    run(unet, given)
    unet.requires_grad_(True)
    engine.begin_generation()
    unet(given.x, given.timesteps, given.context).sum().backward()
    assert block_of(unet).attn1.to_q.weight.grad is not None
    assert dict(engine.generation.reasons) == {"gradients are on, as in training": ALL}
    assert engine.generation.direct == 0


def test_inference_mode_is_direct_before_and_after_no_grad(engine: Engine, host: FakeHost) -> None:
    unet, given = tiny_unet(), inputs()
    with torch.inference_mode():
        first = unet(given.x, given.timesteps, given.context)
    second = run(unet, given)
    with torch.inference_mode(), host.switched_off():
        stock = unet(given.x, given.timesteps, given.context)
    assert max(difference(first, stock), difference(second, stock)) <= LIMIT
    assert (engine.generation.host, engine.generation.direct) == (0, 2 * ALL)


def test_a_global_hook_keeps_the_hosts_modules(engine: Engine, host: FakeHost) -> None:
    def change(unet: Any) -> Undo:
        hook = nn.modules.module.register_module_forward_hook(
            lambda module, args, output: output * 1.25 if isinstance(module, nn.Linear) else None
        )
        return hook.remove

    seen = watch(engine, host, tiny_unet(), change)
    assert torch.equal(seen.ours, seen.stock)
    assert dict(seen.generation.reasons) == {"a global forward hook is set": ALL}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_on_and_off_is_followed(engine: Engine, host: FakeHost, dtype: torch.dtype) -> None:
    unet, given = tiny_unet(), inputs()
    plain = run(unet, given)
    with torch.autocast("cpu", dtype=dtype):
        ours = run(unet, given)
        with host.switched_off():
            stock = run(unet, given)
    assert ours.dtype == stock.dtype
    assert difference(ours, stock) <= 2 * difference(stock, plain) <= 0.2
    assert difference(run(unet, given), plain) <= LIMIT
    assert engine.generation.host == 0


def test_a_live_part_under_autocast_runs_under_autocast(engine: Engine) -> None:
    unet, dtypes = tiny_unet(), []
    block_of(unet).attn2.to_q.register_forward_hook(
        lambda module, args, output: dtypes.append((output.dtype, torch.is_autocast_enabled("cpu")))
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run(unet, inputs())
    assert dtypes == [(torch.bfloat16, True)]
    assert engine.generation.host == 1


def test_a_change_of_the_layers_dtype_is_followed(engine: Engine, host: FakeHost) -> None:
    unet, given = tiny_unet(), inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = run(unet, given)
        for layer in unet.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                layer.to(torch.bfloat16)
        unet.dtype = torch.bfloat16
        ours = run(unet, given)
        with host.switched_off():
            stock = run(unet, given)
    assert ours.dtype == stock.dtype
    assert difference(ours, stock) <= 0.05
    assert difference(before, stock) <= 0.05
    assert engine.generation.host == 0


def test_a_container_replaced_before_us_is_left_alone(host: FakeHost) -> None:
    undo = class_method(ldm_openaimodel.TimestepEmbedSequential)
    unet, given = tiny_unet(), inputs()
    try:
        stock = run(unet, given)
        with attached(host) as engine:
            assert torch.equal(run(unet, given), stock)
            assert engine.generation.direct == 1  # the UNet's own layers
            assert "TimestepEmbedSequential.forward had been replaced before us" in str(engine.report())
    finally:
        undo()


def test_a_trusted_container_before_us_is_accelerated(host: FakeHost) -> None:
    original = ldm_openaimodel.UNetModel.forward

    def asking_first(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return original(self, *args, **kwargs)

    host.trusted.append(asking_first)
    undo = attribute_set(ldm_openaimodel.UNetModel, "forward", asking_first)
    try:
        with attached(host) as engine:
            run(tiny_unet(), inputs())
            assert (engine.generation.host, engine.generation.direct) == (0, ALL)
    finally:
        undo()


@pytest.mark.parametrize("place", ["out", "time_embed"])
def test_report_says_why_the_unets_own_layers_fall_back(engine: Engine, host: FakeHost, place: str) -> None:
    unet = tiny_unet()
    host.live = [("UNet", unet)]
    forward_hook(getattr(unet, place)[2])
    run(unet, inputs())
    assert "has a forward hook" in str(engine.report())
