"""Three sides carry the same networks, each change is timed, and nothing is left behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from lib_accel.bench.quiet import quiet
from lib_accel.bench.sides import BY_LAYER, OURS, PEFT, SIDES, Ours, Parts
from lib_accel.bench.sizes import SIZES, built, changed_layers, weights
from lib_accel.bench.switching import Plan, _count_figures, _skipped, checksum, order
from lib_accel.bench.wardrobe import Wardrobe, Worn, stems_of

_PHASES = ["first", "switch", "scale_change", "one_changed", "unchanged", "off"]


@pytest.fixture(scope="module")
def pipe() -> Iterator[Any]:
    with quiet(), built("tiny") as pipe:
        yield pipe


@pytest.fixture(scope="module")
def wardrobe(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Wardrobe:
    return Wardrobe(pipe.unet, tmp_path_factory.mktemp("files"), 2)


@pytest.fixture(scope="module")
def figures(pipe: Any, wardrobe: Wardrobe) -> dict[str, Any]:
    return _count_figures(pipe, wardrobe, 2, Plan(rounds=1, slow_rounds=1))


def _expected(pipe: Any, wardrobe: Wardrobe, worn: list[Worn]) -> dict[str, Tensor]:
    found = {path: weight.double() for path, weight in weights(pipe.unet).items()}
    for each in worn:
        given = each.source.tensors()
        for stem, path in wardrobe.stems.items():
            up, down = (given[f"{stem}.lora_{part}.weight"].double().flatten(1) for part in ("up", "down"))
            found[path] = found[path] + each.scale * (up @ down).reshape(found[path].shape)
    return found


@pytest.mark.parametrize("name", SIDES)
def test_a_side_really_fuses_the_networks(name: str, pipe: Any, wardrobe: Wardrobe) -> None:
    worn = [Worn(wardrobe.set(0, 1)[0].source, 0.6), *wardrobe.set(1, 1)]
    expected = _expected(pipe, wardrobe, worn)
    before = {path: weight.clone() for path, weight in weights(pipe.unet).items()}
    side = SIDES[name](pipe, wardrobe)
    side.become(worn)
    carried = {path.replace(".base_layer", ""): weight for path, weight in _bare_weights(pipe).items()}
    far = max((carried[path] - value).norm() / value.norm() for path, value in expected.items())
    moved = min((value - before[path]).norm() / value.norm() for path, value in expected.items())
    side.close()
    assert far < 1e-6 < 1e-3 < moved


def _bare_weights(pipe: Any) -> dict[str, Tensor]:
    """The layers' weights, also where peft put an adapter around them."""
    found = {path: module for path, module in pipe.unet.named_modules() if "attentions." in path}
    return {
        path: module.weight.detach().clone()
        for path, module in found.items()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and "lora_" not in path
    }


@pytest.mark.parametrize("name", [OURS, BY_LAYER])
def test_a_side_gives_the_bits_back(name: str, pipe: Any, wardrobe: Wardrobe) -> None:
    before = checksum(pipe.unet)
    side = SIDES[name](pipe, wardrobe)
    side.become(wardrobe.set(0, 2))
    assert checksum(pipe.unet) != before
    side.close()
    assert checksum(pipe.unet) == before


def test_every_side_is_timed_in_every_phase(figures: dict[str, Any]) -> None:
    assert list(figures[PEFT]) == _PHASES
    assert list(figures[OURS]) == list(figures[BY_LAYER]) == [*_PHASES, "shared"]
    assert figures["rounds"] == {OURS: 1, BY_LAYER: 1, PEFT: 1}


def test_a_first_set_of_ours_is_read_planned_copied_and_fused(figures: dict[str, Any]) -> None:
    first = figures[OURS]["first"]
    assert set(first) == {"s", "load", "plan", "copy", "fuse"}
    assert first["s"] == pytest.approx(sum(first[part] for part in ("load", "plan", "copy", "fuse")))


def test_a_set_that_is_there_is_not_fused_again(figures: dict[str, Any]) -> None:
    assert figures[OURS]["unchanged"]["fuse"] < 0.5 * figures[OURS]["switch"]["fuse"]


def test_the_figures_say_who_gives_the_bits_back(figures: dict[str, Any]) -> None:
    assert figures["off_restores_bits"][OURS] is figures["off_restores_bits"][BY_LAYER] is True


def test_half_of_the_layers_are_written_when_half_is_shared(pipe: Any, wardrobe: Wardrobe) -> None:
    side = Ours(pipe, wardrobe)
    kept = wardrobe.half(0, 1, rest=False)
    side.become([*kept, *wardrobe.half(0, 1, rest=True)])
    before = weights(pipe.unet)
    counts = {path: weight.clone() for path, weight in before.items()}
    side.become([*kept, *wardrobe.half(1, 1, rest=True)])
    changed = sum(not torch.equal(weight, counts[path]) for path, weight in weights(pipe.unet).items())
    side.close()
    assert changed == len(counts) // 2


def test_a_side_that_is_not_asked_for_is_left_out(pipe: Any, wardrobe: Wardrobe) -> None:
    assert _skipped(pipe.unet, wardrobe, 1, Plan(without=("peft",))) == {"peft": "not asked for"}


def test_a_side_that_needs_too_much_memory_is_left_out_with_the_reason(pipe: Any, wardrobe: Wardrobe) -> None:
    skipped = _skipped(pipe.unet, wardrobe, 2, Plan(memory_gib=0.5))
    assert set(skipped) == {OURS, BY_LAYER, PEFT}
    assert "0.5 are allowed" in skipped[PEFT]
    assert not _skipped(pipe.unet, wardrobe, 2, Plan())


def test_sides_take_turns_and_each_as_often_as_it_should() -> None:
    assert order("abc", {"a": 3, "b": 3, "c": 2}) == list("abccbaab")


def test_sixteen_networks_and_peft_are_timed_less_often() -> None:
    plan = Plan()
    assert [plan.rounds_of(OURS, 4), plan.rounds_of(OURS, 16), plan.rounds_of(PEFT, 1)] == [5, 3, 3]


def test_time_inside_a_part_does_not_count_twice() -> None:
    parts = Parts()
    with parts.timed("outer"), parts.timed("inner"):
        time.sleep(0.02)
    assert parts.seconds["inner"] >= 0.02
    assert parts.seconds["outer"] < 0.01


def test_a_checksum_tells_one_bit(pipe: Any) -> None:
    before = checksum(pipe.unet)
    weight = next(iter(weights(pipe.unet).values())).view(-1)
    kept = weight[0].clone()
    weight[0] = torch.nextafter(kept, torch.tensor(9.0))
    assert checksum(pipe.unet) != before
    weight[0] = kept


@pytest.mark.parametrize(("name", "layers", "millions"), [("sd15", 192, 267), ("sdxl", 722, 2208)])
def test_a_size_has_the_layers_of_the_real_model(name: str, layers: int, millions: int) -> None:
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**(SIZES[name].unet or {}))
    found = changed_layers(unet)
    assert len(found) == layers
    assert round(sum(module.weight.numel() for module in found.values()) / 1e6) == millions


def test_sdxl_has_the_names_that_its_files_have() -> None:
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**(SIZES["sdxl"].unet or {}))
    stems = stems_of(unet)
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q" in stems
    assert not [stem for stem in stems if "down_blocks" in stem]
