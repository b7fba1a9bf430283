"""Tensors of any roles and shapes are fused or refused in words, and never leave weights half changed."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_accel.lora.formats import LoraError, read_network
from lib_accel.lora.fusion import Fuser, Wanted
from tests.lora import models as make
from tests.lora.small import Small
from tests.lora.test_kinds import BROKEN, INPAINT, WHOLE, of

KINDS = [*WHOLE.values(), *INPAINT.values(), *BROKEN.values()]
LAYERS = ("linear", "square", "plain", "conv", "point", "group_norm", "layer_norm")
SIDES = st.sampled_from([0, 1, 2, 3, 4, 6, 8, 16, 24, 32, 72])
SHAPES = st.one_of(st.just(None), st.lists(SIDES, max_size=4))  # None: as it was


@settings(max_examples=400, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_tensors_are_fused_or_refused_in_words(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    tensors = {}
    for role, tensor in kind.items():
        shape = data.draw(SHAPES) if data.draw(st.integers(0, 3)) == 0 else None
        tensors[role] = tensor if shape is None else torch.full(shape, 0.5)
    if tensors and data.draw(st.booleans()):
        del tensors[data.draw(st.sampled_from(sorted(tensors)))]
    tensors |= {role: torch.ones(data.draw(SHAPES) or []) for role in data.draw(st.sets(EXTRA, max_size=1))}
    model = Small()
    before, fuser = make.bits(model), Fuser({"unet": model})
    said = None
    try:
        network = read_network(of(data.draw(st.sampled_from(LAYERS)), tensors), name="style")
        fuser.fuse([Wanted(network, 1.0, 0.5)])
    except LoraError as error:
        said = str(error)
    assert said is None or ("'style'" in said and make.same_bits(before, model))
    fuser.fuse([])
    assert make.same_bits(before, model)


EXTRA = st.sampled_from(
    ["dora_scale", "lora_magnitude_vector", "lora_mid.weight", "rescale", "alpha", "hada_t1"]
)
