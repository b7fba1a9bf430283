"""Models whose projections are packed: the same results, by fewer products and without a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager

import lib_accel
from lib_accel.blocks import transformer
from lib_accel.blocks.rules import AS_IT_COMES
from lib_accel.engine import Engine
from lib_accel.graphs.compiler import Compiler
from lib_accel.graphs.structure import Sizes, condition_of, normalized, structure_of
from lib_accel.packing import pieces_of
from tests.diffusers import models as of_diffusers
from tests.fakes.attentions import Products, packed
from tests.fakes.models import (
    CONTEXT_WIDTH,
    difference,
    inputs,
    run,
    sgm_openaimodel,
    tiny_controlnet,
    tiny_sd2_unet,
    tiny_sgm_unet,
    tiny_unet,
)
from tests.test_equality import LIMIT


def control(model: Any, batch: int) -> list[Tensor]:
    given, hint = inputs(batch), torch.ones(batch, 3, 64, 64)
    with torch.no_grad():
        return model(given.x, hint, given.timesteps, given.context)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, int], Any]]] = {
    "sd1": (tiny_unet, lambda model, batch: [run(model, inputs(batch))]),
    "sd2": (tiny_sd2_unet, lambda model, batch: [run(model, inputs(batch))]),
    "sgm": (tiny_sgm_unet, lambda model, batch: [run(model, inputs(batch, vector=True))]),
    "control": (tiny_controlnet, control),
    "control of sgm": (lambda: tiny_controlnet(sgm_openaimodel()), control),
}


def spied(call: Callable[[nn.Module, int], Any], model: nn.Module, batch: int) -> Products:
    with Products() as spy:
        call(model, batch)
    return spy


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 2])
def test_results_are_the_same(engine: Engine, name: str, batch: int) -> None:
    make, call = MODELS[name]
    model = make()
    before = call(model, batch)
    assert packed(model).ids()
    assert max(map(difference, call(model, batch), before)) <= LIMIT
    assert engine.generation.host == 0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("engine")
def test_each_attention_takes_one_product_for_what_reads_the_same_and_copies_nothing(name: str) -> None:
    make, call = MODELS[name]
    model = make()
    before = spied(call, model, 2)
    packed(model)
    now = spied(call, model, 2)
    saved = sum(len(piece) - 1 for piece in pieces_of(model))
    assert len(before.widths) - len(now.widths) == saved > 0
    assert now.copies == before.copies


@pytest.mark.usefixtures("engine")
def test_a_model_that_was_moved_since_takes_a_product_each() -> None:
    unet, given = tiny_unet(), inputs()
    before = spied(lambda model, batch: run(model, given), unet, 2)
    packed(unet)
    unet.double().float()
    assert spied(lambda model, batch: run(model, given), unet, 2).widths == before.widths


@pytest.mark.usefixtures("engine")
def test_autocast_casts_packed_weights_at_one_blow() -> None:
    unet, given = tiny_unet(), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        before = spied(lambda model, batch: run(model, given), unet, 2)
        packed(unet)
        now = spied(lambda model, batch: run(model, given), unet, 2)
    sizes = [len(piece) for piece in pieces_of(unet)]
    saved = sum(sizes) - len(sizes)  # with the context, which is cast for one product instead of for two
    assert len(before.copies) - len(now.copies) == saved + sizes.count(2)


# The host's own code, and a compiler


def test_the_hosts_own_code_gives_the_same_from_packed_weights() -> None:
    unet = tiny_unet()
    before = run(unet, inputs())
    packed(unet)
    assert difference(run(unet, inputs()), before) <= LIMIT


def block_of(unet: Any) -> tuple[Any, ...]:
    """Tokens, context and weights of the first transformer block of a UNet, whose weights are packed."""
    packed(unet)
    block = unet.input_blocks[1][1].transformer_blocks[0]
    parts: list[Any] = []
    for norm, attention in ((block.norm1, block.attn1), (block.norm2, block.attn2)):
        layers = (norm, attention.to_q, attention.to_k, attention.to_v, attention.to_out[0])
        parts += [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
    for layer in (block.norm3, block.ff.net[0].proj, block.ff.net[2]):
        parts += [layer.weight, layer.bias]
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, block.norm1.weight.numel(), generator=noise)
    return x, torch.randn(2, 5, CONTEXT_WIDTH, generator=noise), parts


@torch.no_grad()
def test_a_graph_that_was_made_for_weights_apart_takes_packed_ones() -> None:
    x, context, weights = block_of(tiny_unet())
    part = transformer.AttentionSpec(1e-5, 2)
    spec = transformer.BlockSpec(part, False, part, transformer.FeedForwardSpec(1e-5))
    given = normalized(x, context, weights)
    assert given is not None
    structure = structure_of("transformer block", spec, given)
    compiler = Compiler(lambda condition: aot_eager)
    graph = compiler.prepare(
        structure, condition_of(given, AS_IT_COMES), Sizes((2, 6, x.shape[2]), (2, 5, CONTEXT_WIDTH))
    )
    result, is_taken = graph.run(given)
    assert is_taken
    weights_of_block = transformer.block_weights(*weights)
    ours = transformer.transformer_block(x, context, weights_of_block, spec, AS_IT_COMES)
    assert difference(result, ours) <= LIMIT


# diffusers


@pytest.fixture
def pipe() -> Iterator[Any]:
    """A pipeline with a ControlNet, which is accelerated."""
    pipe = of_diffusers.own_pipeline("controlnet")
    handle = lib_accel.accelerate(pipe)
    yield pipe
    assert handle.report().generation.host == 0
    handle.detach()


def test_pictures_of_diffusers_are_the_same_by_fewer_products(pipe: Any) -> None:
    given: dict[str, Any] = {"steps": 1, "output_type": "pt"}
    with Products() as before:
        first = of_diffusers.picture(pipe, "controlnet", **given)
    for model in (pipe.unet, pipe.controlnet):
        assert packed(model).ids()
    with Products() as now:
        ours = of_diffusers.picture(pipe, "controlnet", **given)
    assert difference(ours, first) <= LIMIT
    assert len(now.widths) < len(before.widths)


def test_the_vae_of_diffusers_has_biases_and_is_left_alone(pipe: Any) -> None:
    assert pieces_of(pipe.vae) == []
