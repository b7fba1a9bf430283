"""Networks in weights on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lib_accel.graphs.activity import Activity
from lib_accel.graphs.verdicts import Verdicts
from lib_accel.kernels.configs import ANY, FUSE_HALF, FUSE_SINGLE, Product
from lib_accel.lora import memory
from lib_accel.lora.formats import read_network
from lib_accel.lora.fusion import Fuser, Wanted
from lib_accel.lora.memory import to_pinned
from lib_accel.lora.merge import MERGE, ByKernel
from lib_accel.tuning.contests import Contests
from lib_accel.tuning.tuner import Tuner
from tests.fakes.tuning import Taking
from tests.lora import models as make
from tests.lora import networks as spell
from tests.lora.small import Small, distance, fused
from tests.lora.test_kinds import WHOLE, of

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kind", WHOLE)
def test_every_kind_changes_weights_on_a_gpu_as_on_the_cpu(kind: str) -> None:
    model, tensors = Small().cuda(), of("linear", WHOLE[kind])
    before, fuser = make.bits(model), Fuser({"unet": model})
    for scale in (0.3, 0.7):
        fuser.fuse([Wanted(read_network(tensors), 1.0, scale)])
    assert distance(model.linear.weight.cpu(), fused(tensors, scale=0.7)["linear.weight"]) < 1e-5
    fuser.fuse([])
    assert make.same_bits(before, model)


def test_models_that_leave_the_gpu_take_their_bits_along() -> None:
    model, network = Small().cuda().half(), read_network(of("linear", WHOLE["LoRA"]))
    before, fuser = [bits.cpu() for bits in make.bits(model)], Fuser({"unet": model})
    fuser.fuse([Wanted(network, 1.0, 1.0)])
    model.cpu()
    fuser.fuse([Wanted(network, 1.0, 0.5)])
    model.cuda()
    fuser.fuse([Wanted(network, 1.0, 0.2)])
    model.cpu()
    fuser.fuse([])
    assert make.same_bits(before, model)


def test_pinned_copies_keep_bits_and_layout() -> None:
    weight = torch.randn(8, 4, 3, 3, device="cuda").to(memory_format=torch.channels_last)
    copy = to_pinned(weight)
    assert copy.is_pinned()
    assert copy.stride() == weight.stride()
    assert torch.equal(copy, weight.cpu())


# By the kernel

ENOUGH_S = 600.0  # Triton compiles each tile
EVERYWHERE = f"{spell.LINEAR}|{spell.CONVOLUTIONS}"


def unet(dtype: torch.dtype, *, is_last: bool = False) -> nn.Module:
    model: nn.Module = make.sd1_unet().to("cuda", dtype)
    return model.to(memory_format=torch.channels_last) if is_last else model


def networks(dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """Of different ranks, for all layers."""
    of_model = {"unet": make.sd1_unet()}
    made = [
        spell.network(of_model, seed=seed, rank=rank, pattern=EVERYWHERE) for seed, rank in enumerate((3, 20))
    ]
    return [{key: tensor.to(dtype) for key, tensor in each.items()} for each in made]


def wanted(dtype: torch.dtype, dyn_dim: int | None = None) -> list[Wanted]:
    return [
        Wanted(read_network(each), 1.0, 0.5 - 0.8 * number, dyn_dim)
        for number, each in enumerate(networks(dtype))
    ]


def plain(dtype: torch.dtype, networks: list[Wanted]) -> nn.Module:
    model = unet(dtype)
    Fuser({"unet": model}).fuse(networks)
    return model


def assert_near(ours: nn.Module, theirs: nn.Module, dtype: torch.dtype) -> None:
    tolerance = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-5}[dtype]
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert distance(one.float(), other.float()) < tolerance


@pytest.mark.parametrize("is_last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("tile", FUSE_HALF[ANY], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_kernel_merges_as_plain_torch_by_each_tile(
    dtype: torch.dtype, tile: Product, is_last: bool
) -> None:
    model, tuned = unet(dtype, is_last=is_last), Taking(MERGE.name, ByKernel(tile))
    before, fuser = make.bits(model), Fuser({"unet": model}, tuned=lambda device: tuned)
    for dyn_dim in (None, 2):
        fuser.fuse(wanted(dtype, dyn_dim))
        assert_near(model, plain(dtype, wanted(dtype, dyn_dim)), dtype)
    assert tuned.failures == []
    fuser.fuse([])
    assert make.same_bits(before, model)


def test_factors_of_float32_in_half_weights_are_multiplied_exactly() -> None:
    model, tuned = unet(torch.float16), Taking(MERGE.name, ByKernel(FUSE_SINGLE[ANY][0]))
    Fuser({"unet": model}, tuned=lambda device: tuned).fuse(wanted(torch.float32))
    assert_near(model, plain(torch.float16, wanted(torch.float32)), torch.float16)
    assert tuned.failures == []


def test_bases_in_the_memory_of_the_cpu_are_merged_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "leaves_enough", lambda *args: False)
    model, tuned = unet(torch.float16), Taking(MERGE.name, ByKernel(FUSE_HALF[ANY][0]))
    before, fuser = make.bits(model), Fuser({"unet": model}, tuned=lambda device: tuned)
    for _ in range(2):
        fuser.fuse(wanted(torch.float16))
        assert_near(model, plain(torch.float16, wanted(torch.float16)), torch.float16)
        fuser.fuse([])
        assert make.same_bits(before, model)


def test_contests_choose_and_the_choice_merges_the_same(tmp_path: Path) -> None:
    tuner = Tuner(Verdicts(tmp_path), Activity(), lambda: False, lambda device: True, contests=Contests())
    model = unet(torch.float16)
    fuser = Fuser({"unet": model}, tuned=lambda device: tuner.tuned(device, is_replayed=False))
    fuser.fuse(wanted(torch.float16))
    assert tuner.finish(ENOUGH_S)
    tuner.apply()
    assert all(case.ms for case in tuner.report().cases), [case.reason for case in tuner.report().cases]
    fuser.fuse(wanted(torch.float16))
    assert_near(model, plain(torch.float16, wanted(torch.float16)), torch.float16)
