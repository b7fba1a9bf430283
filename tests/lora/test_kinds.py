"""Networks of all kinds in models: biases and norms, order, inpainting, ranks, and what is broken."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from lib_accel.lora.formats import LoraError, read_network
from lib_accel.lora.fusion import Fuser, Wanted
from lib_accel.lora.kinds import KINDS
from tests.lora import models as make
from tests.lora.small import Small, distance, draw, fused

Tensors = dict[str, Tensor]
TOLERANCE = 1e-5


def of(layer: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {f"lora_unet_{layer}.{role}": tensor for role, tensor in tensors.items()}


def base() -> dict[str, Tensor]:
    return dict(Small().named_parameters())


LORA = {"lora_down.weight": draw(1, 3, 24), "lora_up.weight": draw(2, 32, 3)}
LOHA = {
    "hada_w1_a": draw(1, 32, 3),
    "hada_w1_b": draw(2, 3, 24),
    "hada_w2_a": draw(3, 32, 3),
    "hada_w2_b": draw(4, 3, 24),
}
LOKR = {"lokr_w1": draw(1, 4, 4), "lokr_w2_a": draw(2, 8, 2), "lokr_w2_b": draw(3, 2, 6)}
GLORA = {
    "a1.weight": draw(1, 24, 3),
    "a2.weight": draw(2, 3, 24),
    "b1.weight": draw(3, 32, 3),
    "b2.weight": draw(4, 3, 24),
}
# For the linear layer of a Small, out 32, in 24.
WHOLE: dict[str, Tensors] = {
    "LoRA": LORA,
    "DoRA": LORA | {"dora_scale": draw(3, 32, 1).abs()},
    "LoHa": LOHA,
    "LoKr": LOKR,
    "full": {"diff": draw(1, 32, 24), "diff_b": draw(2, 32)},
    "(IA)3": {"weight": 0.3 * draw(1, 32), "on_input": torch.tensor(False)},
    "(IA)3 of inputs": {"weight": 0.3 * draw(1, 24), "on_input": torch.tensor(1)},
    "(IA)3 of peft": {"ia3_l": draw(1, 32, 1)},
    "OFT": {"oft_blocks": draw(1, 8, 4, 4), "rescale": draw(2, 32, 1)},
    "old OFT": {"oft_diag": draw(1, 8, 4, 4)},
    "BOFT": {"oft_blocks": draw(1, 3, 8, 4, 4)},
    "OFT of peft": {"oft_R.weight": draw(1, 6, 6)},
    "BOFT of peft": {"boft_R": draw(1, 1, 6, 4, 4), "boft_s": draw(2, 32, 1)},
    "GLoRA": GLORA,
}
READ_WEIGHT = ["DoRA", "(IA)3", "OFT", "BOFT", "OFT of peft", "GLoRA"]


@pytest.mark.parametrize("kind", WHOLE)
def test_every_kind_goes_on_and_off(kind: str) -> None:
    model = Small()
    before, network = make.bits(model), read_network(of("linear", WHOLE[kind]))
    fuser = Fuser({"unet": model})
    fuser.fuse([Wanted(network, 1.0, 0.7)])
    assert network.ignored == ()
    assert distance(model.linear.weight, before[0]) > 0.05
    fuser.fuse([])
    assert make.same_bits(before, model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", WHOLE)
def test_every_kind_changes_weights_of_other_precisions(kind: str, dtype: torch.dtype) -> None:
    model, tensors = Small().to(dtype), of("linear", WHOLE[kind])
    wide = Small().to(dtype).float()
    for each in (model, wide):
        with torch.autocast("cpu", torch.bfloat16):
            Fuser({"unet": each}).fuse([Wanted(read_network(tensors), 1.0, 0.7)])
    assert model.linear.weight.dtype is dtype
    assert distance(model.linear.weight.float(), wide.linear.weight.to(dtype).float()) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", WHOLE)
def test_every_kind_is_computed_from_half_precision_files(kind: str, dtype: torch.dtype) -> None:
    half = {role: t.to(dtype) if t.is_floating_point() else t for role, t in WHOLE[kind].items()}
    wide = {role: t.float() if t.is_floating_point() else t for role, t in half.items()}
    now, expected = fused(of("linear", half)), fused(of("linear", wide))
    assert distance(now["linear.weight"], expected["linear.weight"]) < TOLERANCE


@pytest.mark.parametrize("kind", READ_WEIGHT)
def test_order_counts_for_kinds_that_read_the_weight(kind: str) -> None:
    one, two = of("linear", WHOLE[kind]), of("linear", {"diff": draw(9, 32, 24)})
    forwards, backwards = fused(one, two, scale=0.5), fused(two, one, scale=0.5)
    assert distance(forwards["linear.weight"], backwards["linear.weight"]) > 0.01


@pytest.mark.parametrize(("first", "second"), [*pairwise(READ_WEIGHT), ("LoRA", "DoRA"), ("LoKr", "OFT")])
def test_networks_follow_each_other_as_if_fused_in_turn(first: str, second: str) -> None:
    model = Small()
    for kind in (first, second):  # a new Fuser takes what is there for the base
        Fuser({"unet": model}).fuse([Wanted(read_network(of("linear", WHOLE[kind])), 1.0, 0.5)])
    both = fused(of("linear", WHOLE[first]), of("linear", WHOLE[second]), scale=0.5)
    assert distance(both["linear.weight"], model.linear.weight) < TOLERANCE


# Biases and norms


def test_difference_of_a_bias_is_added_to_it() -> None:
    now = fused(of("linear", WHOLE["full"]), scale=-0.7)
    assert torch.allclose(now["linear.bias"], base()["linear.bias"] - 0.7 * WHOLE["full"]["diff_b"])


def test_bias_may_change_beside_a_lora_or_alone() -> None:
    both = fused(of("linear", LORA | {"diff_b": torch.ones(32)}))
    alone = fused(of("linear", {"diff_b": torch.ones(32)}))
    assert torch.equal(both["linear.bias"], base()["linear.bias"] + 1)
    assert torch.equal(both["linear.bias"], alone["linear.bias"])
    assert torch.equal(both["linear.weight"], fused(of("linear", LORA))["linear.weight"])
    assert torch.equal(alone["linear.weight"], base()["linear.weight"])


def test_bias_of_a_layer_without_one_is_reported_as_unknown() -> None:
    network, model = read_network(of("plain", WHOLE["full"]), name="style"), Small()
    fused = Fuser({"unet": model}).fuse([Wanted(network, 1.0, 1.0)])
    assert fused.unknown == {"style": ("lora_unet_plain",)}
    assert fused.layers == 1


def test_bias_that_peft_would_scale_too_may_be_absent() -> None:
    fused = Fuser({"unet": (model := Small())}).fuse(
        [Wanted(read_network(of("plain", WHOLE["(IA)3 of peft"])), 1.0, 1.0)]
    )
    assert (fused.layers, fused.unknown) == (1, {})
    assert distance(model.plain.weight, base()["plain.weight"] * WHOLE["(IA)3 of peft"]["ia3_l"]) < TOLERANCE


@pytest.mark.parametrize(("layer", "size"), [("group_norm", 16), ("layer_norm", 24)])
def test_norms_take_their_differences(layer: str, size: int) -> None:
    now = fused(of(layer, {"w_norm": torch.ones(size), "b_norm": torch.full((size,), 2.0)}), scale=0.5)
    assert torch.equal(now[f"{layer}.weight"], base()[f"{layer}.weight"] + 0.5)
    assert torch.equal(now[f"{layer}.bias"], base()[f"{layer}.bias"] + 1)


def test_norms_of_a_unet_are_found_by_diffusers_and_by_original_names() -> None:
    names = [
        ("down_blocks_0_resnets_0_norm1", "down_blocks.0.resnets.0.norm1"),
        ("input_blocks_1_0_out_layers_0", "down_blocks.0.resnets.0.norm2"),
        (
            "input_blocks_1_1_transformer_blocks_0_norm3",
            "down_blocks.0.attentions.0.transformer_blocks.0.norm3",
        ),
        ("out_0", "conv_norm_out"),
    ]
    unet = make.sd1_unet()
    fuser = Fuser({"unet": unet})
    for name, path in names:
        norm = unet.get_submodule(path)
        before = norm.weight.clone()
        fuser.fuse([Wanted(read_network(of(name, {"w_norm": torch.ones_like(before)})), 1.0, 1.0)])
        assert torch.equal(norm.weight, before + 1)


# A UNet for inpainting reads nine channels, of which a network for plain ones knows four.


def first_layer(channels: int) -> nn.Module:
    model = nn.Module()
    model.conv_in = nn.Conv2d(channels, 8, 3)
    weight = draw(5, 8, 9, 3, 3)[:, :channels].clone()
    model.conv_in.weight = nn.Parameter(weight, requires_grad=False)
    return model


INPAINT: dict[str, Tensors] = {
    "LoRA": {"lora_down.weight": draw(1, 3, 4, 3, 3), "lora_up.weight": draw(2, 8, 3, 1, 1)},
    "LoCon with mid": {
        "lora_down.weight": draw(1, 3, 4, 1, 1),
        "lora_up.weight": draw(2, 8, 3, 1, 1),
        "lora_mid.weight": draw(3, 3, 3, 3, 3),
    },
    "DoRA": {
        "lora_down.weight": draw(1, 3, 4, 3, 3),
        "lora_up.weight": draw(2, 8, 3, 1, 1),
        "dora_scale": draw(3, 1, 4, 1, 1).abs(),
    },
    "LoHa": {
        f"hada_w{n}_{side}": draw(n, *shape)
        for n in (1, 2)
        for side, shape in (("a", (8, 3)), ("b", (3, 36)))
    },
    "LoKr": {"lokr_w1": draw(1, 2, 2), "lokr_w2": draw(2, 4, 2, 3, 3)},
    "full": {"diff": draw(1, 8, 4, 3, 3)},
}


@pytest.mark.parametrize("kind", INPAINT)
def test_latents_change_as_in_a_plain_unet_and_the_mask_stays(kind: str) -> None:
    plain, inpaint = first_layer(4), first_layer(9)
    before = inpaint.conv_in.weight.clone()
    for model in (plain, inpaint):
        network = read_network(of("conv_in", INPAINT[kind]))
        Fuser({"unet": model}).fuse([Wanted(network, 1.0, 0.7)])
    assert distance(inpaint.conv_in.weight[:, :4], plain.conv_in.weight) < TOLERANCE
    assert torch.equal(inpaint.conv_in.weight[:, 4:], before[:, 4:])


def test_rotation_of_outputs_turns_all_nine_channels() -> None:
    model = first_layer(9)
    before = model.conv_in.weight.clone()
    network = read_network(of("conv_in", {"oft_blocks": draw(1, 2, 4, 4)}))
    Fuser({"unet": model}).fuse([Wanted(network, 1.0, 1.0)])
    assert distance(model.conv_in.weight[:, 4:], before[:, 4:]) > 0.1
    assert torch.allclose(model.conv_in.weight.norm(), before.norm(), rtol=1e-4)


# Both text encoders of SDXL


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "OFT", "full"])
@pytest.mark.parametrize("prefixes", [("lora_te1_", "lora_te2_"), ("clip_l.", "clip_g.")])
def test_each_text_encoder_gets_its_own(kind: str, prefixes: tuple[str, str]) -> None:
    models = {"text_encoder": make.text_encoder(), "text_encoder_2": make.second_text_encoder()}
    before = {name: make.bits(model) for name, model in models.items()}
    path = "text_model.encoder.layers.1.mlp.fc1"
    tensors: Tensors = {}
    for prefix, strength in zip(prefixes, (1.0, 0.5), strict=True):
        stem = prefix + (path if prefix.endswith(".") else path.replace(".", "_"))
        tensors |= {f"{stem}.{role}": strength * tensor for role, tensor in TEXT[kind].items()}
    fused = Fuser(models).fuse([Wanted(read_network(tensors), 1.0, 0.0)])
    assert fused.unknown == {}
    assert not any(make.same_bits(before[name], model) for name, model in models.items())
    first, second = (model.get_submodule(of_live(model, path)).weight for model in models.values())
    assert not torch.equal(first, second)


# For a layer with 24 inputs and 48 outputs.
TEXT: dict[str, Tensors] = {
    "LoHa": {"hada_w1_a": draw(1, 48, 2), "hada_w1_b": draw(2, 2, 24), "hada_w2_a": draw(3, 48, 2)}
    | {"hada_w2_b": draw(4, 2, 24)},
    "LoKr": {"lokr_w1": draw(1, 4, 4), "lokr_w2": draw(2, 12, 6)},
    "OFT": {"oft_blocks": draw(1, 12, 4, 4)},
    "full": {"diff": draw(1, 48, 24), "diff_b": draw(2, 48)},
}


def of_live(model: nn.Module, path: str) -> str:
    """The path, which some versions of transformers begin with `text_model`."""
    return path if hasattr(model, "text_model") else path.removeprefix("text_model.")


# Ranks


def test_first_ranks_only_keep_the_strength_of_all() -> None:
    tensors = LORA | {"alpha": torch.tensor(6.0)}
    now = fused(of("linear", tensors), dyn_dim=2)["linear.weight"]
    change = 2 * LORA["lora_up.weight"][:, :2] @ LORA["lora_down.weight"][:2]
    assert distance(now, base()["linear.weight"] + change) < TOLERANCE


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "full", "OFT"])
def test_number_of_ranks_is_for_loras_only(kind: str) -> None:
    tensors = of("linear", WHOLE[kind])
    assert torch.equal(fused(tensors, dyn_dim=1)["linear.weight"], fused(tensors)["linear.weight"])


def test_more_ranks_than_there_are_mean_all() -> None:
    tensors = of("linear", LORA)
    assert torch.equal(fused(tensors, dyn_dim=9)["linear.weight"], fused(tensors)["linear.weight"])


# Names and what is broken


def test_glora_of_old_and_of_today_is_told_by_its_shapes() -> None:
    swapped = {role.translate(str.maketrans("12", "21")): tensor for role, tensor in GLORA.items()}
    assert torch.equal(
        fused(of("linear", swapped))["linear.weight"], fused(of("linear", GLORA))["linear.weight"]
    )


def test_magnitudes_are_by_output_or_by_input_as_they_are_laid_out() -> None:
    rows, columns = draw(3, 24).abs(), draw(3, 24).abs()
    lora = {"lora_down.weight": draw(1, 3, 24), "lora_up.weight": draw(2, 24, 3)}
    now = fused(of("square", lora | {"dora_scale": rows[:, None]}))["square.weight"]
    assert torch.allclose(now.norm(dim=1), rows, rtol=1e-5)
    now = fused(of("square", lora | {"dora_scale": columns[None]}))["square.weight"]
    assert torch.allclose(now.norm(dim=0), columns, rtol=1e-5)
    now = fused(of("square", lora | {"lora_magnitude_vector": rows}))["square.weight"]
    assert torch.allclose(now.norm(dim=1), rows, rtol=1e-5)


def changed(kind: str, **changes: Tensor | None) -> Tensors:
    """The tensors of a kind with some others, or without some."""
    tensors = {**WHOLE[kind], **{role.replace("__", "."): tensor for role, tensor in changes.items()}}
    return {role: tensor for role, tensor in tensors.items() if tensor is not None}


BROKEN: dict[str, Tensors] = {
    "no 'hada_w2_b'": changed("LoHa", hada_w2_b=None),
    r"hada_t1 \(3, 3, 3, 3\) do not belong": changed("LoHa", hada_t1=draw(1, 3, 3, 3, 3)),
    r"hada_w1_a \(31, 3\)": changed("LoHa", hada_w1_a=draw(1, 31, 3)),
    "no 'lokr_w1'": changed("LoKr", lokr_w1=None),
    "no 'lokr_w2_a'": changed("LoKr", lokr_w2_a=None),
    "no 'lokr_w2'": {"lokr_w1": draw(1, 4, 4)},
    r"lokr_w2_b \(3, 6\)": changed("LoKr", lokr_w2_b=draw(1, 3, 6)),
    "'lokr_w1' is torch.int32": changed("LoKr", lokr_w1=torch.ones(4, 4, dtype=torch.int32)),
    r"dora_scale \(31, 1\)": changed("DoRA", dora_scale=draw(1, 31, 1)),
    r"magnitude \(24,\)": changed("LoRA", lora_magnitude_vector=draw(1, 24)),
    "'dora_scale' holds NaN": changed("DoRA", dora_scale=torch.full((32, 1), torch.nan)),
    "'diff' is empty": changed("full", diff=torch.ones(0, 24)),
    r"diff_b \(32, 1\)": changed("full", diff_b=draw(1, 32, 1)),
    "'diff_b' holds NaN": changed("full", diff_b=torch.full((32,), torch.inf)),
    "no 'weight'": changed("(IA)3", weight=None),
    r"on_input \(2,\)": changed("(IA)3", on_input=torch.ones(2)),
    r"oft_blocks \(8, 4, 5\)": changed("OFT", oft_blocks=draw(1, 8, 4, 5)),
    r"rescale \(31, 1\)": changed("OFT", rescale=draw(1, 31, 1)),
    r"oft_blocks \(2, 4\)": {"oft_blocks": draw(1, 2, 4)},
    r"boft_blocks \(9, 8, 4, 4\)": changed("BOFT", oft_blocks=draw(1, 9, 8, 4, 4)),
    r"oft_R \(6, 7\)": changed("OFT of peft", oft_R__weight=draw(1, 6, 7)),
    r"oft_R \(6,\)": changed("OFT of peft", oft_R__weight=draw(1, 6)),
    "no 'boft_s'": changed("BOFT of peft", boft_s=None),
    r"boft_R \(6, 4, 4\)": changed("BOFT of peft", boft_R=draw(1, 6, 4, 4)),
    "no 'b2'": changed("GLoRA", b2__weight=None),
    r"a2 \(3, 23\)": changed("GLoRA", a2__weight=draw(1, 3, 23)),
    "of LoRA and of LoHa": LORA | LOHA,
    "of LoHa and of full difference": LOHA | {"diff": draw(1, 32, 24)},
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_layer_is_named_with_what_is_wrong(fault: str) -> None:
    with pytest.raises(LoraError, match=f"'style': layer 'lora_unet_linear'.*{fault}") as caught:
        read_network(of("linear", BROKEN[fault]), name="style")
    assert "\n" not in str(caught.value)


# For the linear layer, (out 32, in 24); what each is told it would be for.
MISFITS: dict[str, Tensors] = {
    r"\(32, 30\)": changed("LoHa", hada_w1_b=draw(1, 3, 30), hada_w2_b=draw(1, 3, 30)),
    r"\(32, 16\)": changed("LoKr", lokr_w2_b=draw(1, 2, 4)),
    r"\(30, 24\)": {"diff": draw(1, 30, 24)},
    r"\(30, any, any, any\)": {"weight": draw(1, 30), "on_input": torch.tensor(False)},
    r"\(any, 32, any, any\)": {"weight": draw(1, 32), "on_input": torch.tensor(True)},
    r"\(28, any, any, any\)": {"oft_blocks": draw(1, 7, 4, 4)},
    r"\(any, 32\)": {"oft_R.weight": draw(1, 8, 6)},
    r"\(any, a multiple of 5\)": {"oft_R.weight": draw(1, 1, 10)},
    r"\(32, 32\)": changed("BOFT of peft", boft_R=draw(1, 1, 8, 4, 4)),
    r"\(32, 24, 3, 3\)": {"lora_down.weight": draw(1, 2, 24, 3, 3), "lora_up.weight": draw(1, 32, 2, 1, 1)},
    r"\(32\)": {"w_norm": draw(1, 32)},
}


@pytest.mark.parametrize("shape", MISFITS)
def test_layer_for_a_weight_of_another_shape_is_refused_before_any_write(shape: str) -> None:
    model = Small()
    before = make.bits(model)
    fitting = of("conv", {"diff_b": torch.ones(16)})
    network = read_network(fitting | of("linear", MISFITS[shape]), name="style")
    with pytest.raises(
        LoraError, match=rf"'style' was made for another arch.*for a weight {shape}, which here"
    ):
        Fuser({"unet": model}).fuse([Wanted(network, 1.0, 1.0)])
    assert make.same_bits(before, model)


def test_tensors_that_a_layers_kind_does_not_have_are_listed() -> None:
    strange = of(
        "linear", LORA | {"rescale": draw(1, 32, 1), "lora_C.weight": draw(1, 2), "hada_x": draw(1, 2)}
    )
    ignored = read_network(strange).ignored
    assert set(ignored) == {f"lora_unet_linear.{role}" for role in ("rescale", "lora_C.weight", "hada_x")}


def test_plain_weights_of_a_model_are_no_network() -> None:
    with pytest.raises(LoraError, match="has no LoRA layer among its 2 tensors"):
        read_network({"model.linear.weight": draw(1, 4, 4), "model.linear.bias": draw(1, 4)})


def test_no_two_kinds_of_weight_share_what_makes_them_known() -> None:
    marks = [
        (kind.parameter, role)
        for kind in KINDS.values()
        for role in {role for row in kind.needs for entry in row for role in entry.split()}
    ]
    assert len(marks) == len(set(marks))
