"""Encoder and decoder of the VAE: the stock picture, whatever the host or others do to them meanwhile."""

from __future__ import annotations

import gc
import types
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from ldm.modules.diffusionmodules import model as ldm_model
from torch import Tensor, nn

from lib_accel.engine import Engine
from tests.fakes.host import FakeHost, attached
from tests.fakes.models import difference
from tests.fakes.vae import picture, run, sgm_model, tiny_decoder, tiny_encoder

LIMIT = 2e-6  # of a chain: measured 1.1e-6 over four levels, of which a block's attention makes 2e-7
NOISE = 3e-2  # in bfloat16: measured 2.1e-2 over four levels, where both sides are as far from float32
ALL = 10  # blocks of the tiny decoder

F16, BF16 = torch.float16, torch.bfloat16
HOMES = {"ldm": ldm_model, "sgm": sgm_model()}
MODELS = {"decoder": (tiny_decoder, 4), "encoder": (tiny_encoder, 3)}
DEEP = {"ch_mult": (1, 2, 2, 1), "num_res_blocks": 2, "attn_resolutions": [8, 4]}
CASES = [(HOMES[home], *MODELS[name], changes) for home in HOMES for name in MODELS for changes in ({}, DEEP)]
CASE_IDS = [f"{home} {name} {size}" for home in HOMES for name in MODELS for size in ("small", "deep")]


def stock(host: FakeHost, model: nn.Module, x: Tensor) -> Tensor:
    """What the model gives with acceleration off."""
    with host.switched_off():
        return run(model, x)


def assert_stock(host: FakeHost, model: nn.Module, x: Tensor, limit: float = LIMIT) -> None:
    expected = stock(host, model, x)
    ours = run(model, x)
    assert ours.dtype is expected.dtype
    assert difference(ours, expected) <= limit


# The picture


@pytest.mark.parametrize("size", [(1, 4, 4), (2, 5, 7), (3, 8, 3)], ids=str)
@pytest.mark.parametrize(("home", "make", "channels", "changes"), CASES, ids=CASE_IDS)
def test_picture_is_the_hosts_in_float32(
    engine: Engine,
    host: FakeHost,
    home: ModuleType,
    make: Callable[..., Any],
    channels: int,
    changes: dict[str, Any],
    size: tuple[int, int, int],
) -> None:
    grown = 8 if channels == 3 else 1  # the encoder halves it three times
    assert_stock(host, make(home, **changes), picture(size[0], channels, (grown * size[1], grown * size[2])))
    assert (engine.generation.host, engine.generation.direct > 0) == (0, True)


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
@pytest.mark.parametrize(("home", "make", "channels", "changes"), CASES, ids=CASE_IDS)
def test_picture_is_the_hosts_under_autocast(
    engine: Engine,
    host: FakeHost,
    home: ModuleType,
    make: Callable[..., Any],
    channels: int,
    changes: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    side = 4 if channels == 4 else 24
    model, x = make(home, **changes), picture(2, channels, (side, side)).to(dtype)
    with torch.autocast("cpu", dtype=BF16):
        assert_stock(host, model, x, NOISE)
    assert engine.generation.host == 0


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_picture_is_the_hosts_in_half(engine: Engine, host: FakeHost, dtype: torch.dtype) -> None:
    decoder, x = tiny_decoder(attn_resolutions=[8]), picture(2, 4, (3, 4))
    assert_stock(host, decoder.to(dtype), x.to(dtype), NOISE)
    assert engine.generation.host == 0


def test_every_call_gives_the_same_bits(engine: Engine) -> None:
    decoder, x = tiny_decoder(), picture(2)
    assert torch.equal(run(decoder, x), run(decoder, x))


def test_each_picture_of_a_batch_is_what_it_is_alone(engine: Engine) -> None:
    decoder, x = tiny_decoder(), picture(2)
    together = run(decoder, x)
    assert all(difference(together[i : i + 1], run(decoder, x[i : i + 1])) <= LIMIT for i in range(2))


def test_tiling_wraps_round_while_it_is_on(engine: Engine, host: FakeHost) -> None:
    decoder, x = tiny_decoder(), picture(1, 4, (6, 5))
    pictures = []
    for mode in ("zeros", "circular", "zeros"):
        for layer in decoder.modules():
            if type(layer) is nn.Conv2d:
                layer.padding_mode = mode
        assert_stock(host, decoder, x)
        pictures.append(run(decoder, x))
    assert engine.generation.host == 0
    assert difference(pictures[1], pictures[0]) > 0.1
    assert torch.equal(pictures[2], pictures[0])


def test_a_tiled_picture_moves_with_its_latents(engine: Engine) -> None:
    decoder, x = tiny_decoder(), picture(1, 4, (8, 8))
    for layer in decoder.modules():
        if type(layer) is nn.Conv2d:
            layer.padding_mode = "circular"
    moved = run(decoder, x.roll((3, 2), (2, 3)))
    assert difference(moved, run(decoder, x).roll((6, 4), (2, 3))) <= LIMIT


# Weights that change, as when the host meets NaN and switches the dtype


def _make_overflow(decoder: Any) -> Any:
    """Beyond what float16 holds, within what bfloat16 does."""
    decoder.conv_in.weight.data.mul_(3e5)
    return decoder


def test_dtype_may_change_between_two_calls(engine: Engine, host: FakeHost) -> None:
    decoder, x = tiny_decoder(), picture(1, 4, (3, 4))
    for dtype in (F16, BF16, torch.float32, F16):
        decoder.to(dtype)
        assert_stock(host, decoder, x.to(dtype), LIMIT if dtype is torch.float32 else NOISE)
    assert engine.generation.host == 0


@pytest.mark.parametrize("dtype", [F16, BF16, torch.float32], ids=str)
def test_a_picture_is_nan_where_the_hosts_is(engine: Engine, host: FakeHost, dtype: torch.dtype) -> None:
    decoder, x = _make_overflow(tiny_decoder()).to(dtype), picture(1, 4, (3, 4)).to(dtype)
    assert torch.equal(run(decoder, x).isnan(), stock(host, decoder, x).isnan())
    assert run(decoder, x).isnan().all() == (dtype is F16)
    assert engine.generation.host == 0


def test_nan_is_gone_after_the_hosts_retry(engine: Engine, host: FakeHost) -> None:
    decoder, x = _make_overflow(tiny_decoder()), picture(1, 4, (3, 4))
    with torch.autocast("cpu", dtype=F16):
        assert run(decoder, x).isnan().all()
    decoder.to(BF16)
    assert_stock(host, decoder, x.to(BF16), NOISE)
    assert engine.generation.host == 0


def test_dtype_may_change_in_the_middle_of_a_call(engine: Engine, host: FakeHost) -> None:
    pictures = []
    for is_stock in (True, False):
        decoder = tiny_decoder()
        decoder.mid.block_2.register_forward_pre_hook(lambda block, args, d=decoder: d.up.to(BF16) and None)
        with torch.autocast("cpu", dtype=BF16):
            pictures.append(stock(host, decoder, picture()) if is_stock else run(decoder, picture()))
    assert difference(pictures[1], pictures[0]) <= NOISE
    assert (engine.generation.host, engine.generation.direct) == (1, ALL - 1)


def test_a_call_that_the_host_refuses_raises_as_the_hosts(engine: Engine, host: FakeHost) -> None:
    decoder, x = tiny_decoder().to(BF16), picture()
    with host.switched_off(), pytest.raises(RuntimeError) as theirs:
        run(decoder, x)
    with pytest.raises(RuntimeError) as ours:
        run(decoder, x)
    assert str(ours.value) == str(theirs.value)
    assert_stock(host, decoder, x.to(BF16), NOISE)
    assert engine.generation.host == 0


@pytest.mark.parametrize("assign", [False, True])
def test_weights_may_be_loaded_anew(engine: Engine, host: FakeHost, assign: bool) -> None:
    decoder, x = tiny_decoder(), picture()
    before = run(decoder, x)
    decoder.load_state_dict(tiny_decoder(seed=1).state_dict(), assign=assign)
    assert_stock(host, decoder, x)
    assert difference(run(decoder, x), before) > 0.1


# What others replace


def _halved(self: Any, x: Tensor, **kwargs: Any) -> Tensor:
    return x / 2


def _sdpa(self: Any, x: Tensor) -> Tensor:
    """The same attention in another order of operations, as the host's hijack sets it."""
    q, k, v = (layer(self.norm(x)).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
    mixed = nn.functional.scaled_dot_product_attention(q, k, v)
    return x + self.proj_out(mixed.transpose(1, 2).unflatten(2, x.shape[2:]))


REASON = "AttnBlock.forward was replaced by _halved of tests.test_vae"


@pytest.mark.parametrize("home", HOMES.values(), ids=HOMES)
def test_a_trusted_attention_may_come_and_go_at_any_time(
    host: FakeHost, home: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, x, original = tiny_decoder(home), picture(), home.AttnBlock.forward
    host.trusted = [_sdpa]
    monkeypatch.setattr(home.AttnBlock, "forward", _sdpa)  # before us
    with attached(host) as engine:
        for forward in (_sdpa, original, _sdpa):
            monkeypatch.setattr(home.AttnBlock, "forward", forward)
            assert_stock(host, decoder, x)
    assert (engine.generation.host, engine.generation.direct) == (0, 3 * ALL)


@pytest.mark.parametrize("home", HOMES.values(), ids=HOMES)
@pytest.mark.parametrize("before_us", [True, False])
def test_an_untrusted_attention_runs_live_among_ours(
    host: FakeHost, home: ModuleType, before_us: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, x = tiny_decoder(home), picture()
    if before_us:
        monkeypatch.setattr(home.AttnBlock, "forward", _halved)
    with attached(host) as engine:
        before = run(decoder, x)
        monkeypatch.setattr(home.AttnBlock, "forward", _halved)
        engine.begin_generation()
        assert_stock(host, decoder, x)
        assert (difference(run(decoder, x), before) > 0.1) != before_us
    assert (engine.generation.host, engine.generation.direct) == (2, 2 * (ALL - 1))
    assert set(engine.generation.reasons) == {REASON}


def test_a_late_change_of_what_a_decoder_ends_with_is_seen(engine: Engine, host: FakeHost) -> None:
    decoder, x = tiny_decoder(), picture()
    before = run(decoder, x)
    decoder.tanh_out = True
    assert_stock(host, decoder, x)
    assert difference(run(decoder, x), before) > 1e-3


def test_an_untrusted_attention_that_goes_is_ours_again(
    engine: Engine, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, x = tiny_decoder(), picture()
    with monkeypatch.context() as patch:
        patch.setattr(ldm_model.AttnBlock, "forward", _halved)
        run(decoder, x)
    engine.begin_generation()
    assert_stock(host, decoder, x)
    assert (engine.generation.host, engine.generation.direct) == (0, ALL)


@pytest.mark.parametrize("child", [nn.Identity(), nn.Conv2d(64, 64, 1)], ids=["none", "foreign"])
def test_a_foreign_attention_runs_live_among_ours(engine: Engine, host: FakeHost, child: nn.Module) -> None:
    decoder = tiny_decoder()
    decoder.mid.attn_1 = child
    assert_stock(host, decoder, picture())
    assert (engine.generation.host, engine.generation.direct) == (1, ALL - 1)
    assert type(child).__qualname__ in next(iter(engine.generation.reasons))


def test_the_attention_that_xformers_would_run_is_ours_too(engine: Engine, host: FakeHost) -> None:
    decoder, other = tiny_decoder(), tiny_decoder()
    other.mid.attn_1 = ldm_model.MemoryEfficientAttnBlock(64).requires_grad_(False)
    other.load_state_dict(decoder.state_dict())
    assert difference(run(other, picture()), stock(host, decoder, picture())) <= LIMIT
    assert (engine.generation.host, engine.generation.direct) == (0, ALL)


@pytest.mark.parametrize("path", ["conv_in", "mid.block_1", "up.1.block.1", "up.1.upsample", "norm_out"])
def test_a_hooked_block_runs_live_among_ours(engine: Engine, host: FakeHost, path: str) -> None:
    decoder, x = tiny_decoder(), picture()
    run(decoder, x)
    decoder.get_submodule(path).register_forward_hook(lambda module, args, output: output * 1.5)
    engine.begin_generation()
    assert_stock(host, decoder, x)
    assert (engine.generation.host, engine.generation.direct) == (1, ALL - 1)


@pytest.mark.parametrize("path", ["down.0.block.0", "down.0.downsample", "mid.block_2", "conv_out"])
def test_a_hooked_block_of_the_encoder_runs_live_among_ours(
    engine: Engine, host: FakeHost, path: str
) -> None:
    encoder = tiny_encoder()
    encoder.get_submodule(path).register_forward_hook(lambda module, args, output: output * 1.5)
    assert_stock(host, encoder, picture(1, 3))
    assert engine.generation.host == 1


def test_a_live_block_among_ours_runs_under_the_hosts_autocast(engine: Engine, host: FakeHost) -> None:
    decoder, seen = tiny_decoder(), []
    decoder.mid.block_1.conv1.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=BF16):
        assert_stock(host, decoder, picture(), NOISE)
    assert seen == [BF16, BF16]


@pytest.mark.parametrize("change", ["give_pre_end", "tanh_out"])
def test_an_end_of_another_form_stays_with_the_host(engine: Engine, host: FakeHost, change: str) -> None:
    decoder, x = tiny_decoder(**{change: True}), picture()
    assert torch.equal(run(decoder, x), stock(host, decoder, x))
    assert engine.generation.direct == 0
    assert f"{change}=True" in next(iter(engine.generation.reasons))


def test_a_replaced_forward_that_calls_no_more_than_layers_is_not_ours(engine: Engine) -> None:
    decoder, x = tiny_decoder(), picture()
    decoder.forward = types.MethodType(lambda self, z: self.conv_in(z), decoder)
    assert torch.equal(run(decoder, x), decoder.conv_in(x))
    assert engine.generation.direct == 0


def test_a_replaced_forward_may_call_the_bound_original(engine: Engine, host: FakeHost) -> None:
    decoder, x = tiny_decoder(), picture(1, 4, (4, 12))
    whole = decoder.forward
    decoder.forward = lambda z: torch.cat([whole(tile) for tile in z.split(6, dim=3)], dim=3)
    assert_stock(host, decoder, x)
    assert (engine.generation.host, engine.generation.direct) == (0, 2 * ALL)


def test_a_class_replaced_before_us_costs_only_its_own_blocks(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ldm_model.Decoder.forward
    monkeypatch.setattr(ldm_model.Decoder, "forward", lambda self, z: original(self, z) * 2)
    decoder, encoder = tiny_decoder(), tiny_encoder()
    host.live = [("decoder", decoder), ("encoder", encoder)]
    with attached(host) as engine:
        assert_stock(host, decoder, picture())
        assert_stock(host, encoder, picture(1, 3))
        assert {each.name: (each.blocks.host, each.blocks.direct) for each in engine.report().models} == {
            "decoder": (ALL, 0),
            "encoder": (0, 8),
        }
    assert dict(engine.generation.reasons) == {
        "ldm.modules.diffusionmodules.model.Decoder.forward had been replaced before us": ALL
    }


def test_a_call_with_options_stays_with_the_host(engine: Engine, host: FakeHost) -> None:
    decoder, x = tiny_decoder(HOMES["sgm"]), picture()
    with torch.no_grad():
        assert torch.equal(decoder(z=x), stock(host, decoder, x))
    assert dict(engine.generation.reasons) == {"called with z": 1}


# The report, and memory


def test_both_are_in_the_report_as_one_model(engine: Engine, host: FakeHost) -> None:
    whole = nn.ModuleDict({"encoder": tiny_encoder(), "decoder": tiny_decoder()})
    whole["decoder"].mid.attn_1 = nn.Identity()
    host.live = [("VAE", whole)]
    (found,) = engine.report().models
    assert (found.name, found.blocks.direct, found.blocks.host) == ("VAE", 8 + ALL - 1, 1)


def test_nothing_is_left_on_the_model(engine: Engine) -> None:
    decoder = tiny_decoder()
    before = {name: set(vars(module)) for name, module in decoder.named_modules()}
    run(decoder, picture())
    assert {name: set(vars(module)) for name, module in decoder.named_modules()} == before


def _with_live_steps(decoder: Any) -> None:
    decoder.mid.attn_1 = nn.Identity()
    for path in ("conv_in", "mid.block_1", "up.1.upsample", "norm_out"):
        decoder.get_submodule(path).register_forward_hook(lambda *args: None)


def _tiled(decoder: Any) -> None:
    whole = decoder.forward
    decoder.forward = lambda z: whole(z)


PREPARED = {"direct": lambda decoder: None, "live": _with_live_steps, "tiled": _tiled}


@pytest.mark.parametrize("prepare", PREPARED.values(), ids=PREPARED)
@pytest.mark.parametrize("make", [tiny_decoder, tiny_encoder])
def test_a_dropped_model_is_freed(
    engine: Engine, make: Callable[..., Any], prepare: Callable[[Any], None]
) -> None:
    model = make()
    if make is tiny_decoder:
        prepare(model)
    run(model, picture(1, 4 if make is tiny_decoder else 3))
    known = [weakref.ref(each) for each in (model, model.conv_in, model.conv_in.weight)]
    del model
    gc.collect()
    assert [each() for each in known] == [None] * 3


def test_a_model_that_is_not_called_is_freed_after_a_report(engine: Engine, host: FakeHost) -> None:
    host.live = [("VAE", tiny_decoder())]
    engine.report()
    known = weakref.ref(host.live.pop()[1])
    gc.collect()
    assert known() is None
