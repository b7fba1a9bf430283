"""Whole calls of diffusers' models as recordings, by the stand-in for CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

import lib_accel
from lib_accel import engine as engine_module
from lib_accel.graphs.recorder import Recorder, TapeRecording
from lib_accel.hosts.diffusers import Handle
from tests.diffusers import models
from tests.diffusers.test_equality import LIMIT, Stock

CLOSE = 1e-6  # relative L2: a replay does what our code did before it


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(engine_module, "_launchers", lambda: {"cpu": recorder})
    return recorder


@pytest.fixture
def launched(recorder: Recorder) -> Iterator[Callable[..., Handle]]:
    """lib_accel.accelerate with `launch` at "graph", undone after the test."""
    handles: list[Handle] = []

    def make(pipe: Any, **options: Any) -> Handle:
        handles.append(lib_accel.accelerate(pipe, **{"launch": "graph", **options}))
        return handles[-1]

    yield make
    for handle in handles:
        handle.detach()


def called(model: Any, step: Any = 500, *, seed: int = 7, **given: Any) -> Any:
    """One call with inputs of its own, over which the caller writes afterwards."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, model.config.in_channels, *models.LATENTS, generator=generator)
    context = torch.randn(2, models.TOKENS, model.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        result = model(x, step, context, **given)
        x.fill_(1e6)
        context.fill_(1e6)
    return result


def held(handle: Handle, call: Callable[[], Any]) -> tuple[Any, Any]:
    """What a call gives as it is, and without us."""
    result = call()
    handle.enabled = False
    expected = call()
    handle.enabled = True
    return result, expected


def is_replayed(handle: Handle, call: Callable[[], Any]) -> bool:
    before = handle.report().launches.replays
    call()
    return handle.report().launches.replays > before


# Pipelines


@pytest.mark.parametrize("name", ["sd1", "sdxl", "controlnet"])
def test_a_picture_is_the_same_and_its_steps_are_replayed(
    name: str, launched: Callable[..., Handle], stock: Stock
) -> None:
    pipe = models.pipeline(name)
    handle = launched(pipe)
    expected = stock(name, steps=6)
    for _ in range(2):
        assert models.difference(models.picture(pipe, name, steps=6), expected) <= LIMIT
    report = handle.report()
    assert report.generation.replayed >= 8 * next(m.blocks.total for m in report.models if m.name == "unet")
    assert (report.generation.host, report.launches.captures) == (0, report.launches.graphs)


def test_a_pipeline_from_another_shares_the_recordings(launched: Callable[..., Handle]) -> None:
    pipe = models.own_pipeline()
    handle = launched(pipe)
    models.picture(pipe, steps=4)
    before = handle.report().launches
    other = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    handle.enabled = False
    expected = models.picture(other, "sd1 img2img", steps=4)
    handle.enabled = True
    assert models.difference(models.picture(other, "sd1 img2img", steps=4), expected) <= LIMIT
    after = handle.report().launches
    assert after.replays > before.replays + 3


def test_a_decoded_picture_is_replayed(launched: Callable[..., Handle]) -> None:
    pipe = models.pipeline()
    handle = launched(pipe)
    for seed in range(4):
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            result, expected = held(handle, lambda latents=latents: pipe.vae.decode(latents).sample)
        assert models.difference(result, expected) <= LIMIT
    report = handle.report().launches
    assert (report.captures, report.replays) == (1, 2)


def test_layers_of_the_text_encoder_are_replayed(launched: Callable[..., Handle]) -> None:
    pipe = models.pipeline()
    handle = launched(pipe)
    for seed in range(4):
        tokens = torch.randint(0, 1000, (1, models.TOKENS), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            result, expected = held(handle, lambda tokens=tokens: pipe.text_encoder(tokens)[0])
        assert models.difference(result, expected) <= LIMIT
    layers = models.parts_of(pipe.text_encoder, "CLIPEncoderLayer")
    assert handle.report().launches.replays == 2 * len(layers)


# One model

STEPS: dict[str, list[Any]] = {
    "integers": [900, 600, 300, 0, 1],
    "floats": [900.5, 600.0, 300.25, 0.0, 1.0],
    "tensors": [torch.tensor(step) for step in (900, 600, 300, 0, 1)],
    "tensors of batches": [torch.tensor([step]) for step in (900, 600, 300, 0, 1)],
}


@pytest.mark.parametrize("kind", STEPS)
def test_timesteps_are_inputs(kind: str, launched: Callable[..., Handle]) -> None:
    pipe = models.pipeline()
    handle = launched(pipe)
    for step in STEPS[kind]:
        result, expected = held(handle, lambda step=step: called(pipe.unet, step).sample)
        assert models.difference(result, expected) <= LIMIT
    assert (handle.report().launches.captures, handle.report().launches.replays) == (1, 3)


def test_a_timestep_by_name_is_an_input(launched: Callable[..., Handle]) -> None:
    pipe = models.pipeline()
    handle = launched(pipe)

    def call(step: int) -> Tensor:
        with torch.no_grad():
            return pipe.unet(
                sample=torch.ones(1, 4, 8, 8), timestep=step, encoder_hidden_states=torch.ones(1, 5, 32)
            ).sample

    for step in (900, 600, 300, 0):
        result, expected = held(handle, lambda step=step: call(step))
        assert models.difference(result, expected) <= LIMIT
    assert handle.report().launches.replays == 2


@pytest.mark.parametrize("as_dict", [True, False])
def test_results_have_the_form_that_is_asked_for(as_dict: bool, launched: Callable[..., Handle]) -> None:
    pipe = models.pipeline()
    handle = launched(pipe)
    for seed in range(4):
        result, expected = held(handle, lambda seed=seed: called(pipe.unet, seed=seed, return_dict=as_dict))
        assert type(result) is type(expected)
        assert models.difference(result[0], expected[0]) <= LIMIT
    assert handle.report().launches.replays == 2


@pytest.mark.parametrize("as_dict", [True, False])
def test_a_controlnet_is_replayed_and_its_results_stay(
    as_dict: bool, launched: Callable[..., Handle]
) -> None:
    pipe = models.pipeline("controlnet")
    handle = launched(pipe)
    found = []
    for seed in range(5):
        given = {"controlnet_cond": torch.rand(2, 3, 64, 64), "return_dict": as_dict}
        pair = held(handle, lambda seed=seed, given=given: called(pipe.controlnet, seed=seed, **given))
        assert type(pair[0]) is type(pair[1])
        found.append([(each[0], each[1]) for each in pair])
    for (down, middle), (stock_down, stock_middle) in found:
        assert type(down) is type(stock_down)
        pairs = zip((*down, middle), (*stock_down, stock_middle), strict=True)
        assert max(models.difference(*pair) for pair in pairs) <= LIMIT
    assert (handle.report().launches.captures, handle.report().launches.replays) == (1, 3)


def test_strength_of_control_is_part_of_the_call(launched: Callable[..., Handle]) -> None:
    pipe = models.pipeline("controlnet")
    handle = launched(pipe)
    hint = torch.rand(2, 3, 64, 64)
    for scale in (1.0, 0.5, 1.0, 0.5, 1.0, 0.5):
        given = {"controlnet_cond": hint, "conditioning_scale": scale}
        result, expected = held(handle, lambda given=given: called(pipe.controlnet, **given))
        assert models.difference(result.mid_block_res_sample, expected.mid_block_res_sample) <= LIMIT
    assert handle.report().launches.replays == 2


def test_freeu_is_seen_when_it_comes_and_goes(launched: Callable[..., Handle]) -> None:
    pipe = models.own_pipeline()
    handle = launched(pipe)
    for change in (
        lambda: None,
        lambda: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
        lambda: pipe.enable_freeu(s1=0.5, s2=0.5, b1=1.5, b2=1.5),
        pipe.disable_freeu,
    ):
        change()
        for seed in range(3):
            result, expected = held(handle, lambda seed=seed: called(pipe.unet, seed=seed).sample)
            assert models.difference(result, expected) <= LIMIT
    assert is_replayed(handle, lambda: called(pipe.unet))


def test_loras_change_without_a_new_recording(launched: Callable[..., Handle]) -> None:
    pipe = models.own_pipeline()
    handle = launched(pipe)
    generator = torch.Generator().manual_seed(3)
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_{}.weight"
    lora = {
        key.format(side): torch.randn(shape, generator=generator)
        for side, shape in (("A", (4, 64)), ("B", (64, 4)))
    }
    for seed in range(3):
        bare = called(pipe.unet, seed=seed).sample
    before = handle.report().launches.captures
    for strength in (1.0, 0.5, 0.0):
        handle.set_loras([(lora, 0.0, strength)] if strength else [])
        result, expected = held(handle, lambda: called(pipe.unet, seed=2).sample)
        assert models.difference(result, expected) <= LIMIT
        assert (models.difference(result, bare) > 1e-3) == (strength > 0)
        assert is_replayed(handle, lambda: called(pipe.unet))
    assert handle.report().launches.captures == before


def test_a_wrapper_that_skips_blocks_has_its_way(launched: Callable[..., Handle]) -> None:
    """As DeepCache: forwards on instances of blocks, which return what they kept in some steps."""
    pipe = models.own_pipeline()
    handle = launched(pipe)
    for seed in range(3):
        called(pipe.unet, seed=seed)
    block, kept, state = pipe.unet.mid_block, {}, {"step": 0}
    inner = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if state["step"] % 2 == 0:
            kept["it"] = inner(*args, **kwargs)
        return kept["it"]

    block.forward = forward
    for step in range(6):
        state["step"] = step
        handle.enabled = step % 2 == 0  # what is kept is from the step before
        result = called(pipe.unet, seed=step).sample
        handle.enabled = False
        expected = called(pipe.unet, seed=step).sample
        assert models.difference(result, expected) <= LIMIT
    handle.enabled = True
    state["step"] = 0
    for _ in range(3):
        called(pipe.unet)
    assert is_replayed(handle, lambda: called(pipe.unet))
    del block.forward


def test_an_attention_processor_of_others_costs_its_block_only(launched: Callable[..., Handle]) -> None:
    pipe = models.own_pipeline()
    handle = launched(pipe)
    attention = models.parts_of(pipe.unet, "Attention")[0]

    class Scaled(diffusers.models.attention_processor.AttnProcessor):
        scale = 1.0

        def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
            return super().__call__(*args, **kwargs) * self.scale

    attention.processor = Scaled()
    for scale in (1.0, 1.5, 2.0, 2.5):
        attention.processor.scale = scale
        result, expected = held(handle, lambda: called(pipe.unet).sample)
        assert models.difference(result, expected) <= LIMIT
    assert handle.report().launches.replays > 0


@pytest.mark.parametrize("move", [lambda unet: unet.double().float(), lambda unet: unet.to("meta") and unet])
def test_weights_that_moved_are_recorded_anew(
    move: Callable[[Any], Any], launched: Callable[..., Handle]
) -> None:
    pipe = models.own_pipeline()
    handle = launched(pipe)
    for seed in range(3):
        called(pipe.unet, seed=seed)
    weights = {name: each.clone() for name, each in pipe.unet.state_dict().items()}
    move(pipe.unet)
    if next(pipe.unet.parameters()).is_meta:
        pipe.unet.to_empty(device="cpu").load_state_dict(weights)
    for seed in range(4):
        result, expected = held(handle, lambda seed=seed: called(pipe.unet, seed=seed).sample)
        assert models.difference(result, expected) <= LIMIT
    assert handle.report().launches.captures == 2


def test_a_weight_of_the_models_own_layers_that_moved_is_recorded_anew(
    launched: Callable[..., Handle],
) -> None:
    pipe = models.own_pipeline()
    handle = launched(pipe)
    for seed in range(3):
        called(pipe.unet, seed=seed)
    pipe.unet.conv_out.weight.data = pipe.unet.conv_out.weight.data * 2
    for seed in range(3):
        result, expected = held(handle, lambda seed=seed: called(pipe.unet, seed=seed).sample)
        assert models.difference(result, expected) <= LIMIT
    assert handle.report().launches.captures == 2


# What fails


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("bad launch")])
def test_a_replay_that_fails_leaves_the_hosts_result(
    error: Exception, launched: Callable[..., Handle], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = models.own_pipeline()
    launched(pipe)
    for _ in range(3):
        expected = called(pipe.unet, seed=2).sample

    def fail(recording: TapeRecording) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(TapeRecording, "replay", fail)
        assert models.difference(called(pipe.unet, seed=2).sample, expected) <= LIMIT
    assert models.difference(called(pipe.unet, seed=2).sample, expected) <= LIMIT


def test_a_fault_of_ours_in_the_second_call_leaves_the_hosts_result(
    launched: Callable[..., Handle], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lib_accel.blocks import res

    def fail(*args: Any) -> Any:
        raise RuntimeError("bad kernel")

    pipe = models.own_pipeline()
    launched(pipe)
    expected = called(pipe.unet).sample
    monkeypatch.setattr(res, "res_block", fail)
    assert models.difference(called(pipe.unet).sample, expected) <= LIMIT


def test_an_error_of_the_models_own_code_comes_out(launched: Callable[..., Handle]) -> None:
    pipe = models.own_pipeline()
    launched(pipe)
    for _ in range(3):
        called(pipe.unet)
    pipe.unet.class_embedding = nn.Identity()
    with pytest.raises(ValueError, match="class_labels"):
        called(pipe.unet)


def test_eager_records_nothing(launched: Callable[..., Handle]) -> None:
    pipe = models.pipeline()
    handle = launched(pipe, launch="eager")
    for _ in range(4):
        called(pipe.unet)
    assert handle.report().launches.captures == 0


def test_detached_models_are_the_hosts_and_hold_no_memory(launched: Callable[..., Handle]) -> None:
    pipe = models.pipeline()
    handle = launched(pipe)
    for _ in range(3):
        expected = called(pipe.unet).sample
    handle.detach()
    report = handle.report().launches
    assert (report.graphs, report.mib) == (0, 0)
    assert models.difference(called(pipe.unet).sample, expected) <= LIMIT
