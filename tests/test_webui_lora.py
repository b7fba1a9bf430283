"""Networks of the webui's Lora extension, merged by us as it would merge them, and kept and read ahead."""

from __future__ import annotations

import copy
import gc
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_accel.hosts import webui_lora, webui_lora_files
from lib_accel.hosts.webui_lora import MARK, Merger, find_network, wanted_networks
from lib_accel.hosts.webui_lora_files import PASSING, KeptNetworks, ReadAhead
from lib_accel.lora.terms import Term
from tests.fakes import lora_extension as fake
from tests.fakes.lora_extension import Network, Networks

RANK = 4
NAMES = ("linear", "convolution", "inpainting", "norm", "other")


def _model() -> nn.ModuleDict:
    torch.manual_seed(5)
    layers = {
        "linear": nn.Linear(24, 16),
        "convolution": nn.Conv2d(8, 16, 3, bias=False),
        "inpainting": nn.Conv2d(9, 8, 3),
        "norm": nn.GroupNorm(2, 8),
        "other": nn.Linear(8, 8),
    }
    for name, layer in layers.items():
        layer.network_layer_name = name
    return nn.ModuleDict(layers).requires_grad_(False)


@pytest.fixture
def model() -> nn.ModuleDict:
    return _model()


def _shape(weight: Tensor) -> tuple[int, ...]:
    return (
        (weight.shape[0], 4, *weight.shape[2:]) if weight.ndim == 4 and weight.shape[1] == 9 else weight.shape
    )


def _lora(weight: Tensor) -> dict[str, Tensor]:
    out, *rest = _shape(weight)
    up = torch.randn(out, RANK, *[1] * (weight.ndim - 2)) * 0.1
    return {"lora_up.weight": up, "lora_down.weight": torch.randn(RANK, *rest), "alpha": torch.tensor(2.0)}


def _locon(weight: Tensor) -> dict[str, Tensor]:
    out, inner, height, width = _shape(weight)
    return {
        "lora_up.weight": torch.randn(out, RANK, 1, 1) * 0.1,
        "lora_mid.weight": torch.randn(RANK, RANK, height, width) * 0.3,
        "lora_down.weight": torch.randn(RANK, inner, 1, 1),
        "alpha": torch.tensor(2.0),
    }


def _loha(weight: Tensor) -> dict[str, Tensor]:
    out, *rest = weight.shape
    inner = torch.Size(rest).numel()
    one, two = (torch.randn(out, RANK) * 0.2, torch.randn(RANK, inner)), (torch.randn(out, RANK), None)
    return {
        "hada_w1_a": one[0],
        "hada_w1_b": one[1],
        "hada_w2_a": two[0],
        "hada_w2_b": torch.randn(RANK, inner),
        "alpha": torch.tensor(1.0),
    }


def _loha_with_mids(weight: Tensor) -> dict[str, Tensor]:
    out, inner, height, width = weight.shape
    parts = {f"hada_t{n}": torch.randn(RANK, RANK, height, width) * 0.3 for n in (1, 2)}
    for n in (1, 2):
        parts |= {
            f"hada_w{n}_a": torch.randn(RANK, out) * 0.3,
            f"hada_w{n}_b": torch.randn(RANK, inner),
        }
    return parts


def _lokr(weight: Tensor) -> dict[str, Tensor]:
    out, inner, *rest = weight.shape
    return {
        "lokr_w1": torch.randn(4, 4) * 0.1,
        "lokr_w2_a": torch.randn(out // 4, RANK),
        "lokr_w2_b": torch.randn(RANK, inner // 4 * torch.Size(rest).numel()),
        "alpha": torch.tensor(2.0),
    }


def _lokr_with_mid(weight: Tensor) -> dict[str, Tensor]:
    out, inner, height, width = weight.shape
    return {
        "lokr_w1_a": torch.randn(4, 2) * 0.1,
        "lokr_w1_b": torch.randn(2, 4),
        "lokr_t2": torch.randn(RANK, RANK, height, width),
        "lokr_w2_a": torch.randn(RANK, out // 4),
        "lokr_w2_b": torch.randn(RANK, inner // 4),
    }


def _full(weight: Tensor) -> dict[str, Tensor]:
    return {"diff": torch.randn(weight.shape) * 0.1, "diff_b": torch.randn(weight.shape[0]) * 0.1}


def _dora(weight: Tensor) -> dict[str, Tensor]:
    return _lora(weight) | {"dora_scale": torch.rand(1, weight.shape[1], *[1] * (weight.ndim - 2)) + 0.5}


def _network(name: str, model: nn.ModuleDict, seed: int, **modules: tuple[Any, Any]) -> Network:
    """A network of (class, maker of its tensors) for layers by name."""
    torch.manual_seed(seed)
    network = Network(name)
    for layer, (kind, make) in modules.items():
        network.modules[layer] = kind(network, make(model[layer].weight))
    return network


def _plain(name: str, model: nn.ModuleDict, seed: int) -> Network:
    makers = dict.fromkeys(("linear", "convolution", "inpainting"), (fake.NetworkModuleLora, _lora))
    return _network(name, model, seed, **makers)


def _both(ours: nn.ModuleDict, merger: Merger, networks: Networks, *, exact: bool = False) -> nn.ModuleDict:
    """Merges into `ours`, and returns a model into which the extension merged by itself."""
    stock = _model()
    for layer in stock.values():
        networks.network_apply_weights(layer)
    networks.writes = 0
    merger.merge([*ours.values()], networks, exact=exact)
    return stock


def _difference(ours: nn.ModuleDict, stock: nn.ModuleDict) -> float:
    """The largest, against the largest number of each tensor."""
    theirs = stock.state_dict()
    return max(
        ((tensor - theirs[name]).abs().max() / theirs[name].abs().max()).item()
        for name, tensor in ours.state_dict().items()
    )


KINDS: dict[str, tuple[str, type, Any]] = {
    "LoRA": ("linear", fake.NetworkModuleLora, _lora),
    "LoCon": ("convolution", fake.NetworkModuleLora, _lora),
    "LoCon with mid": ("convolution", fake.NetworkModuleLora, _locon),
    "LoRA of 4 channels for 9": ("inpainting", fake.NetworkModuleLora, _lora),
    "LoHa": ("linear", fake.NetworkModuleHada, _loha),
    "LoHa of a convolution": ("convolution", fake.NetworkModuleHada, _loha),
    "LoHa with mids": ("convolution", fake.NetworkModuleHada, _loha_with_mids),
    "LoKr": ("linear", fake.NetworkModuleLokr, _lokr),
    "LoKr with mid": ("convolution", fake.NetworkModuleLokr, _lokr_with_mid),
}
OTHERS: dict[str, tuple[str, type, Any]] = {
    "full difference": ("linear", fake.NetworkModuleFull, _full),
    "full difference, no bias before": ("convolution", fake.NetworkModuleFull, _full),
    "norm": ("norm", fake.NetworkModuleFull, _full),
    "DoRA": ("linear", fake.NetworkModuleLora, _dora),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [1.0, -0.7, 0.0])
def test_a_kind_of_ours_is_as_the_extension_merges_it(
    model: nn.ModuleDict, kind: str, strength: float
) -> None:
    layer, module, make = KINDS[kind]
    networks = Networks(_network("a", model, 1, **{layer: (module, make)}))
    networks.loaded_networks[0].unet_multiplier = strength
    before = model[layer].weight.clone()
    stock = _both(model, Merger(), networks)
    assert networks.writes == 0
    assert _difference(model, stock) <= 1e-6
    assert strength == 0 or (model[layer].weight - before).norm() > 0.01 * before.norm()
    assert getattr(model[layer], MARK) == getattr(stock[layer], MARK)


@pytest.mark.parametrize("kind", OTHERS)
def test_another_kind_is_merged_by_the_extension_to_the_bit(model: nn.ModuleDict, kind: str) -> None:
    layer, module, make = OTHERS[kind]
    networks = Networks(_plain("a", model, 1), _network("b", model, 2, **{layer: (module, make)}))
    stock = _both(model, Merger(), networks)
    assert networks.writes == 1
    for name, tensor in model[layer].state_dict().items():
        assert torch.equal(tensor, stock[layer].state_dict()[name])


def test_a_smaller_rank_is_taken(model: nn.ModuleDict) -> None:
    networks = Networks(_plain("a", model, 1))
    networks.loaded_networks[0].dyn_dim = 2
    assert _difference(model, _both(model, Merger(), networks)) <= 1e-6


def test_many_networks_are_written_once(model: nn.ModuleDict) -> None:
    networks = Networks(*(_plain(f"n{number}", model, number) for number in range(5)))
    version = model["linear"].weight._version
    stock = _both(model, Merger(), networks)
    assert _difference(model, stock) <= 1e-6
    assert model["linear"].weight._version - version <= 2  # the base, and all factors in one product


def test_half_weights_are_rounded_once(model: nn.ModuleDict) -> None:
    networks = Networks(*(_plain(f"n{number}", model, number) for number in range(8)))
    exact = _both(_model(), Merger(), networks)  # in float32, whose rounding is nothing here
    merged = {}
    for fast in (True, False):
        half = _model().half()
        Merger().merge([*half.values()], networks, exact=not fast)
        merged[fast] = (half["linear"].weight.float() - exact["linear"].weight).abs().mean()
    assert merged[True] < 0.6 * merged[False]


@pytest.mark.parametrize("kind", KINDS)
def test_factors_may_be_halves_for_weights_that_are_not(model: nn.ModuleDict, kind: str) -> None:
    """As with a GPU, where the extension keeps LoRAs in float16."""
    layer, module, make = KINDS[kind]

    def halves(weight: Tensor) -> dict[str, Tensor]:
        return {name: tensor.half() for name, tensor in make(weight).items()}

    for half_weights in (False, True):
        networks = Networks(_network("a", model, 1, **{layer: (module, halves)}))
        whole = Networks(_network("a", model, 1, **{layer: (module, make)}))
        ours, wanted = _model(), _model()
        if half_weights:
            ours.half()
        Merger().merge([ours[layer]], networks, exact=False)
        Merger().merge([wanted[layer]], whole, exact=False)
        assert networks.writes == 0
        torch.testing.assert_close(ours[layer].weight.float(), wanted[layer].weight, rtol=5e-3, atol=5e-3)


def test_layers_that_no_network_means_are_left_alone(model: nn.ModuleDict) -> None:
    networks = Networks(_plain("a", model, 1))
    Merger().merge([*model.values()], networks, exact=False)
    assert not hasattr(model["other"], "network_weights_backup")
    assert getattr(model["other"], MARK, ()) == ()


def _version(model: nn.ModuleDict) -> list[int]:
    return [layer.weight._version for layer in model.values()]


def test_only_layers_whose_networks_changed_are_written(model: nn.ModuleDict) -> None:
    a = _network("a", model, 1, linear=(fake.NetworkModuleLora, _lora))
    b = _network("b", model, 2, convolution=(fake.NetworkModuleLora, _lora))
    networks, merger = Networks(a), Merger()
    merger.merge([*model.values()], networks, exact=False)
    before = _version(model)
    merger.merge([*model.values()], networks, exact=False)
    assert _version(model) == before
    networks.loaded_networks = [a, b]
    stock = _both(model, merger, networks)
    assert [index for index, old in enumerate(before) if old != _version(model)[index]] == [1]
    assert _difference(model, stock) <= 1e-6
    assert getattr(model["linear"], MARK) == getattr(model["convolution"], MARK)


def test_random_sets_one_after_the_other_leave_no_trace(model: nn.ModuleDict) -> None:
    pristine = copy.deepcopy(model.state_dict())
    pool = [_plain(f"n{number}", model, number) for number in range(4)]
    pool.append(_network("full", model, 9, linear=KINDS["LoHa"][1:], convolution=OTHERS["DoRA"][1:]))
    pool.append(_network("bias", model, 10, linear=OTHERS["norm"][1:], convolution=OTHERS["norm"][1:]))
    networks, merger = Networks(), Merger()
    lot = torch.Generator().manual_seed(3)
    for step in range(60):
        chosen = torch.randperm(len(pool), generator=lot)[: step % 4]
        networks.loaded_networks = [pool[number] for number in chosen]
        for network in networks.loaded_networks:
            network.unet_multiplier = 0.25 * int(torch.randint(-4, 5, (), generator=lot))
        by_itself = step % 7 == 6  # as when acceleration is off for a picture
        if by_itself:
            for layer in model.values():
                networks.network_apply_weights(layer)
        stock = _both(model, merger, networks, exact=step % 11 == 10)
        assert _difference(model, stock) <= 1e-6, step
    networks.loaded_networks = []
    merger.merge([*model.values()], networks, exact=False)
    assert all(torch.equal(tensor, pristine[name]) for name, tensor in model.state_dict().items())
    assert model["convolution"].bias is None


def _living_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects())


def test_ten_thousand_switches_neither_drift_nor_grow(model: nn.ModuleDict) -> None:
    """Bits are those of a fresh merge of the same set at any time, and the pristine ones in the end."""
    pool = [_plain(f"n{number}", model, number) for number in range(6)]
    pool += [_network(name, model, 9, **{KINDS[name][0]: KINDS[name][1:]}) for name in ("LoHa", "LoKr")]
    networks, merger, lot = Networks(), Merger(), random.Random(11)
    living = 0
    for step in range(10_000):
        networks.loaded_networks = lot.sample(pool, lot.randrange(len(pool) + 1))
        for network in networks.loaded_networks:
            network.unet_multiplier = lot.choice((-1.0, -0.3, 0.0, 0.4, 1.0))
        merger.merge([*model.values()], networks, exact=False)
        if step % 100 == 50:
            fresh = _model()
            Merger().merge([*fresh.values()], networks, exact=False)
            assert all(torch.equal(model[name].weight, fresh[name].weight) for name in NAMES)
        if step == 100:
            living = _living_tensors()
    assert abs(_living_tensors() - living) <= 4  # those of the set that is merged
    networks.loaded_networks = []
    merger.merge([*model.values()], networks, exact=False)
    assert all(torch.equal(model[name].weight, _model()[name].weight) for name in NAMES)


def test_the_extension_takes_over_what_we_left(model: nn.ModuleDict) -> None:
    networks = Networks(_plain("a", model, 1))
    Merger().merge([*model.values()], networks, exact=False)
    ours = copy.deepcopy(model.state_dict())
    for layer in model.values():
        networks.network_apply_weights(layer)
    assert all(torch.equal(tensor, ours[name]) for name, tensor in model.state_dict().items())
    networks.loaded_networks = []
    for layer in model.values():
        networks.network_apply_weights(layer)
    assert all(torch.equal(t, _model().state_dict()[name]) for name, t in model.state_dict().items())


def test_a_bias_that_a_network_made_goes_with_it(model: nn.ModuleDict) -> None:
    """The convolution has none; a network of another kind makes one, at several strengths."""
    network = _network("bias", model, 3, convolution=OTHERS["full difference, no bias before"][1:])
    networks, merger = Networks(network), Merger()
    for strength in (1.0, 0.5, -1.0):
        network.unet_multiplier = strength
        merger.merge([*model.values()], networks, exact=False)
        torch.testing.assert_close(
            model["convolution"].bias, strength * network.modules["convolution"].ex_bias
        )
    networks.loaded_networks = []
    merger.merge([*model.values()], networks, exact=False)
    assert model["convolution"].bias is None
    assert torch.equal(model["convolution"].weight, _model()["convolution"].weight)


@pytest.mark.parametrize("exact", [False, True])
def test_a_network_that_breaks_the_extension_leaves_a_pristine_layer(
    model: nn.ModuleDict, exact: bool
) -> None:
    class Broken(fake.NetworkModuleFull):
        def calc_updown(self, weight: Tensor) -> Any:
            raise TypeError("no such slice")

    before, networks, merger = _plain("a", model, 1), Networks(), Merger()
    networks.loaded_networks = [before]
    merger.merge([*model.values()], networks, exact=exact)
    full = _network("full", model, 2, linear=OTHERS["full difference"][1:])
    networks.loaded_networks = [full, _network("broken", model, 3, linear=(Broken, _full))]
    with pytest.raises(TypeError):
        merger.merge([*model.values()], networks, exact=exact)
    networks.loaded_networks = []
    merger.merge([*model.values()], networks, exact=exact)
    for layer, pristine in zip(model.values(), _model().values(), strict=True):
        assert torch.equal(layer.weight, pristine.weight)
        assert layer.bias is None or torch.equal(layer.bias, pristine.bias)


def test_what_is_given_back_the_extension_merges_by_itself(model: nn.ModuleDict) -> None:
    networks, merger = Networks(*(_plain(f"n{number}", model, number) for number in range(5))), Merger()
    merger.merge([*model.values()], networks, exact=False)
    merger.give_back(networks)
    stock = _model()
    for layers in (model, stock):
        for layer in layers.values():
            networks.network_apply_weights(layer)
    assert all(torch.equal(model[name].weight, stock[name].weight) for name in NAMES)


def test_autocast_changes_nothing(model: nn.ModuleDict) -> None:
    networks = Networks(*(_network(kind, model, 1, **{KINDS[kind][0]: KINDS[kind][1:]}) for kind in KINDS))
    wanted = _model()
    Merger().merge([*wanted.values()], networks, exact=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        Merger().merge([*model.values()], networks, exact=False)
    assert all(torch.equal(model[name].weight, wanted[name].weight) for name in NAMES)


def test_a_changed_file_of_the_same_name_is_noticed(model: nn.ModuleDict) -> None:
    networks, merger = Networks(_plain("a", model, 1)), Merger()
    networks.loaded_networks[0].modules["norm"] = fake.NetworkModuleFull(
        networks.loaded_networks[0], _full(model["norm"].weight)
    )
    merger.merge([*model.values()], networks, exact=False)
    before = wanted_networks(networks)
    networks.loaded_networks = [_plain("a", model, 2)]
    networks.loaded_networks[0].mtime = 2.0
    networks.loaded_networks[0].modules["norm"] = fake.NetworkModuleFull(
        networks.loaded_networks[0], _full(model["norm"].weight)
    )
    assert wanted_networks(networks) != before
    assert _difference(model, _both(model, merger, networks)) <= 1e-6


def test_exact_takes_effect_on_what_is_merged_already(model: nn.ModuleDict) -> None:
    networks, merger = Networks(*(_plain(f"n{number}", model, number) for number in range(5))), Merger()
    merger.merge([*model.values()], networks, exact=False)
    stock = _both(model, merger, networks, exact=True)
    assert all(torch.equal(tensor, stock.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_merge_that_fails_leaves_no_half_merged_layer(
    model: nn.ModuleDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks, merger = Networks(_plain("a", model, 1)), Merger()
    merger.merge([*model.values()], networks, exact=False)
    networks.loaded_networks[0].unet_multiplier = 0.5
    whole = webui_lora.write_sum

    def failing(weight: Tensor, base: Tensor, terms: Sequence[Term]) -> None:
        if terms and weight is model["convolution"].weight:
            weight.zero_()
            raise MemoryError
        whole(weight, base, terms)

    with monkeypatch.context() as patch:
        patch.setattr(webui_lora, "write_sum", failing)
        with pytest.raises(MemoryError):
            merger.merge([*model.values()], networks, exact=False)
    assert torch.equal(model["convolution"].weight, _model()["convolution"].weight)
    for strength in (1.0, 0.5):  # what it carried before, and what it was to carry
        networks.loaded_networks[0].unet_multiplier = strength
        assert _difference(model, _both(model, merger, networks)) <= 1e-6


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_network_that_is_not_finite_is_named_and_left_out(model: nn.ModuleDict, number: float) -> None:
    good, bad = _plain("good", model, 1), _plain("bad", model, 2)
    bad.modules["linear"].up_model.weight[0, 0] = number
    networks, alone = Networks(good, bad), Networks(good)
    Merger().merge([model["linear"]], networks, exact=False)
    assert networks.extra_network_lora.errors == {"bad": 1}
    wanted = _model()
    Merger().merge([wanted["linear"]], alone, exact=False)
    assert torch.equal(model["linear"].weight, wanted["linear"].weight)


def test_a_network_of_another_shape_is_named_by_the_extension_and_the_others_apply(
    model: nn.ModuleDict,
) -> None:
    good, bad = _plain("good", model, 1), Network("bad")
    bad.modules["linear"] = fake.NetworkModuleLora(bad, _lora(model["other"].weight))
    networks = Networks(good, bad)
    stock = _both(model, Merger(), networks)
    assert networks.extra_network_lora.errors == {"bad": 2}  # ours and the stock model's
    assert _difference(model, stock) <= 1e-6


def test_layers_whose_class_passes_by_the_extension_are_left_alone(model: nn.ModuleDict) -> None:
    kind = type("LayerNorm", (nn.LayerNorm,), {"__module__": "open_clip.transformer"})
    layer: Any = kind(8).requires_grad_(False)
    layer.network_layer_name = "norm"
    networks = Networks(_network("a", model, 1, norm=OTHERS["norm"][1:]))
    Merger().merge([layer], networks, exact=False)
    Merger().merge([layer], networks, exact=True)
    assert torch.equal(layer.weight, torch.ones(8))
    assert networks.writes == 0


# Files


@pytest.fixture
def files(tmp_path: Path) -> Networks:
    networks = Networks()
    for name, mib in (("a", 1), ("b", 2), ("c", 1)):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(bytes(mib * 2**20))
        networks.add_file(name, path)
    return networks


class _Kept:
    """KeptNetworks in front of a fake extension."""

    def __init__(self, networks: Networks, mib: int) -> None:
        self.mib, self.checkpoint, self.networks = mib, nn.Linear(1, 1), networks
        self.seconds: list[float] = []
        self.kept = KeptNetworks(lambda: self.mib, lambda: self.checkpoint, self.seconds.append)
        self._load = self.kept.loading(networks.load_network)

    def load(self, name: str) -> Network:
        result: Network = self._load(name, self.networks.available_network_aliases[name])
        return result


def test_a_network_that_is_kept_is_not_read_again(files: Networks) -> None:
    kept = _Kept(files, mib=4)
    first = kept.load("a")
    assert kept.load("a") is first
    assert files.reads == ["a"]
    assert len(kept.seconds) == 2


def test_the_least_recently_used_go_first(files: Networks) -> None:
    kept = _Kept(files, mib=3)
    for name in ("a", "b", "a", "c", "a", "b"):
        kept.load(name)
    assert files.reads == ["a", "b", "c", "b"]
    kept.mib = 0
    kept.load("a")
    assert len(kept.kept) == 0


def test_a_file_that_will_not_come_again_is_not_kept(files: Networks) -> None:
    kept = _Kept(files, mib=4)
    setattr(files.available_network_aliases["a"], PASSING, True)
    kept.load("b")
    kept.load("a")
    assert (files.reads, len(kept.kept), kept.kept.kept_bytes()) == (["b", "a"], 1, 2 * 2**20)


def test_a_changed_file_is_read_again(files: Networks) -> None:
    kept = _Kept(files, mib=4)
    kept.load("a")
    path = files.available_network_aliases["a"].filename
    os.utime(path, ns=(1, 1))
    kept.load("a")
    assert files.reads == ["a", "a"]


def test_what_was_read_for_another_checkpoint_is_forgotten(files: Networks) -> None:
    kept = _Kept(files, mib=4)
    kept.load("a")
    kept.checkpoint = nn.Linear(1, 1)
    kept.load("a")
    assert files.reads == ["a", "a"]


def test_a_network_that_somebody_renamed_is_read_again(files: Networks) -> None:
    kept = _Kept(files, mib=4)
    kept.load("a").name = "a, weighted by block"
    assert kept.load("a").name == "a"
    assert files.reads == ["a", "a"]


def test_an_error_of_the_extension_comes_out_and_nothing_is_kept(files: Networks) -> None:
    def failing(name: str, network_on_disk: Any) -> Any:
        raise AssertionError("no kind")

    seconds: list[float] = []
    kept = KeptNetworks(lambda: 4, nn.Module, seconds.append)
    with pytest.raises(AssertionError, match="no kind"):
        kept.loading(failing)("a", files.available_network_aliases["a"])
    assert (len(kept), len(seconds)) == (0, 1)


@pytest.fixture
def installed(files: Networks, monkeypatch: pytest.MonkeyPatch) -> Networks:
    monkeypatch.setitem(sys.modules, "networks", files)
    return files


def test_files_are_found_by_the_names_that_prompts_have(installed: Networks) -> None:
    assert find_network("a") == installed.available_network_aliases["a"].filename
    assert find_network("nobody") is None


def test_there_is_nothing_to_find_without_the_extension() -> None:
    assert find_network("a") is None


def test_networks_of_a_prompt_are_read_ahead(installed: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def find(name: str) -> str | None:
        asked.append(name)
        return find_network(name)

    ahead = ReadAhead(find)
    read: list[str] = []
    monkeypatch.setattr(ahead, "_read", read.append)
    ahead.prompt('{"prompt": "a cat <lora:a:0.5> <lora:nobody:1> and <lora:b:te=1:unet=0>", "steps": 20}')
    ahead.wait()
    assert asked == ["a", "nobody", "b"]
    assert read == [find_network("a"), find_network("b")]


def test_reading_ahead_says_what_it_found(installed: Networks) -> None:
    ahead = ReadAhead(find_network)
    assert ahead.names(["a", "nobody", "a"]) == (["a"], ["nobody"])
    ahead.wait()


def test_a_file_is_not_read_again_at_once(installed: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead, read = ReadAhead(find_network), []
    monkeypatch.setattr(ahead, "_read", read.append)
    for name in ("a", "b", "a"):
        ahead.names([name])
    monkeypatch.setattr(webui_lora_files, "_FRESH_S", 0.0)
    ahead.names(["a"])
    ahead.wait()
    assert read == [find_network(name) for name in ("a", "b", "a")]


def test_a_file_that_is_gone_is_no_error_of_reading_ahead(tmp_path: Path) -> None:
    ahead = ReadAhead(lambda name: str(tmp_path / "gone"))
    assert ahead.names(["a"]) == (["a"], [])
    ahead.wait()
