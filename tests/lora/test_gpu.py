"""Networks in weights on a GPU."""

from __future__ import annotations

import pytest
import torch

from lib_accel.lora.formats import read_network
from lib_accel.lora.fusion import Fuser, Wanted
from lib_accel.lora.memory import to_pinned
from tests.lora import models as make
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
