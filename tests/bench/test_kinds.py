"""Formulas of the kinds, against peft where it has them and against what they must do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import peft
import pytest
import torch
from peft.tuners.boft import layer as boft
from torch import Tensor, nn

from lib_accel.bench.kinds import KINDS, SHARE, Draw, Kind
from lib_accel.bench.spellings import ROWS, SPELLINGS

_SHAPES = {"matrices": (32, 48), "linear": (32, 48), "kernels": (32, 48, 3, 3), "norms": (32,)}


class _BlockDiagonals:
    @staticmethod
    def apply(blocks: Tensor) -> Tensor:
        return torch.stack([torch.block_diag(*level) for level in blocks])


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 32, bias=False)


def _made(kind: Kind, weight: Tensor) -> dict[str, Tensor]:
    return kind.make(weight, Draw(1))


def _wide(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {role: value if value.dtype == torch.bool else value.double() for role, value in given.items()}


def _merged_by_peft(model: nn.Module, config: Any, given: Mapping[str, Tensor]) -> Tensor:
    adapted = peft.get_peft_model(model, config)
    keys = {f"base_model.model.layer.{role}": value for role, value in given.items()}
    missed = peft.set_peft_model_state_dict(adapted, keys)
    assert not missed.unexpected_keys
    merged: Tensor = adapted.merge_and_unload().layer.weight.detach().double()
    return merged


@pytest.mark.parametrize("name", KINDS)
def test_a_change_is_about_as_large_as_it_should_be(name: str) -> None:
    kind = KINDS[name]
    weight = torch.randn(_SHAPES[kind.layers], generator=torch.Generator().manual_seed(2))
    change = kind.changed(weight.double(), _wide(_made(kind, weight))) - weight
    assert 0.1 * SHARE < change.norm() / weight.norm() < 3 * SHARE


@pytest.mark.parametrize("name", KINDS)
def test_equal_seeds_make_equal_networks(name: str) -> None:
    kind = KINDS[name]
    weight = torch.ones(_SHAPES[kind.layers]).normal_(generator=torch.Generator().manual_seed(2))
    one, two = _made(kind, weight), _made(kind, weight)
    assert all(torch.equal(value, two[role]) for role, value in one.items())


_PEFT: dict[str, Any] = {
    "LoHa": peft.LoHaConfig(r=4, alpha=4, target_modules=["layer"]),
    "DoRA of peft": peft.LoraConfig(r=4, lora_alpha=4, use_dora=True, target_modules=["layer"]),
    "(IA)3 of peft": peft.IA3Config(target_modules=["layer"], feedforward_modules=["layer"]),
    "BOFT of peft": peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=3, target_modules=["layer"]),
    "OFT of peft": peft.OFTConfig(oft_block_size=12, use_cayley_neumann=True, target_modules=["layer"]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", _PEFT)
def test_peft_makes_the_same_weight(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # peft has more than one level of BOFT only where its CUDA extension can be compiled.
    monkeypatch.setattr(boft, "get_fbd_cuda", object)
    monkeypatch.setattr(boft, "FastBlockDiag", _BlockDiagonals)
    model = _Model()
    weight = model.layer.weight.detach().clone()
    made = _made(KINDS[name], weight)
    made.pop("alpha", None)
    expected = KINDS[name].changed(weight.double(), _wide(made))
    roles = SPELLINGS["peft"].roles
    merged = _merged_by_peft(model, _PEFT[name], {roles.get(role, role): each for role, each in made.items()})
    assert (merged - expected).norm() < 1e-5 * (expected - weight).norm()


def test_oft_without_a_rescale_keeps_all_norms() -> None:
    kind = KINDS["OFT"]
    weight = torch.randn(32, 48, generator=torch.Generator().manual_seed(2)).double()
    turned = kind.changed(weight, _wide(_made(kind, weight.float())))
    assert torch.allclose(turned.norm(dim=0), weight.norm(dim=0))


def test_every_row_names_a_kind_and_a_spelling_once() -> None:
    rows = [(kind, spelling) for kind, spellings in ROWS for spelling in spellings]
    assert len(set(rows)) == len(rows)
    assert {kind for kind, _ in rows} == KINDS.keys()
    assert {spelling for _, spelling in rows} == SPELLINGS.keys()


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("down_blocks.0.attentions.1.proj_in", "unet.input_blocks.2.1.proj_in.alpha"),
        ("down_blocks.2.attentions.0.proj_in", "unet.input_blocks.7.1.proj_in.alpha"),
        ("mid_block.attentions.0.proj_in", "unet.middle_block.1.proj_in.alpha"),
        ("up_blocks.3.attentions.2.proj_in", "unet.output_blocks.11.1.proj_in.alpha"),
    ],
)
def test_onetrainer_counts_blocks_as_the_original_does(path: str, key: str) -> None:
    assert SPELLINGS["OneTrainer"].key("unet", path, "alpha") == key


@pytest.mark.parametrize(
    ("spelling", "component", "key"),
    [
        ("kohya", "unet", "lora_unet_a_0_to_q.lora_up.weight"),
        ("kohya", "text_encoder", "lora_te_text_model_a_0_to_q.lora_up.weight"),
        ("OneTrainer", "text_encoder", "clip_l.text_model.a.0.to_q.lora_up.weight"),
        ("LyCORIS", "unet", "lycoris_a_0_to_q.lora_up.weight"),
        ("diffusers", "unet", "unet.a.0.to_q.lora_B.weight"),
        ("diffusers", "text_encoder", "text_encoder.text_model.a.0.to_q.lora_B.weight"),
        ("diffusers, old", "unet", "unet.a.0.to_q.lora.up.weight"),
        ("peft", "unet", "base_model.model.a.0.to_q.lora_B.weight"),
    ],
)
def test_a_key_is_spelled_as_files_have_it(spelling: str, component: str, key: str) -> None:
    assert SPELLINGS[spelling].key(component, "a.0.to_q", "lora_up.weight") == key
