"""Each kind of network: what makes it known, the weights that it is for, the change that it makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor

from lib_accel.lora import delta, rewrite, rotation, shapes
from lib_accel.lora.network import Layer, Multiple, Shape
from lib_accel.lora.shapes import Tensors
from lib_accel.lora.terms import Dense, Factors, Rewrite, Term


class Use(NamedTuple):
    """A layer of a network that is wanted: its tensors on the weight's device, and how much of it."""

    tensors: Tensors
    layer: Layer
    shape: tuple[int, ...]  # of what it changes
    scale: float
    dyn_dim: int | None  # only so many ranks of a LoRA

    @property
    def strength(self) -> float:
        """What a change with alpha and rank is multiplied by."""
        return self.scale * self.layer.strength


class Kind(NamedTuple):
    """One row of `KINDS`."""

    needs: Sequence[Sequence[str]]  # of each row one entry is there: roles, with spaces between them
    shape: Callable[[Tensors], Shape | None]  # None if the tensors do not belong together
    term: Callable[[Use], Term]
    takes: str = ""  # roles that may be there too
    rank: Callable[[Tensors], int | None] = lambda tensors: None  # what alpha is divided by
    parameter: str = "weight"
    is_implied: bool = False  # changes a bias only where there is one


def names_of(roles: Sequence[str]) -> list[str]:
    """The kinds that these roles of one layer make known, also if others of theirs are missing."""
    return [name for name, kind in KINDS.items() if not _marks(kind).isdisjoint(roles)]


def roles_of(kind: Kind) -> set[str]:
    """All roles that a kind may have."""
    return _marks(kind) | set(kind.takes.split())


def missing_role(kind: Kind, roles: Sequence[str]) -> str | None:
    """A role that the kind needs besides these, if it needs one."""
    for choices in kind.needs:
        lacking = [[role for role in choice.split() if role not in roles] for choice in choices]
        if all(lacking):
            begun = [
                lack for lack, choice in zip(lacking, choices, strict=True) if len(lack) < len(choice.split())
            ]
            return (begun or lacking)[0][0]
    return None


def _marks(kind: Kind) -> set[str]:
    return {role for choices in kind.needs for choice in choices for role in choice.split()}


def changed_shape(have: Shape, want: Sequence[int]) -> tuple[int, ...] | None:
    """The shape of what a layer for `have` changes in a weight of the shape `want`; None if it does not fit.

    It is all of the weight or, in an inpainting UNet, what reads the latents.
    """
    return next(
        (shape for shape in (tuple(want), delta.latent_shape(want)) if shape and _fits(have, shape)), None
    )


def _fits(have: Shape, want: tuple[int, ...]) -> bool:
    if len(have) == 4 and len(want) == 2:
        want = (*want, 1, 1)
    if len(have) == 2 and len(want) == 4:
        want = (want[0], math.prod(want[1:]))
    return len(have) == len(want) and all(map(_is_length, have, want))


def _is_length(have: int | Multiple | None, want: int) -> bool:
    return want % have.of == 0 if isinstance(have, Multiple) else have in (None, want)


def term(
    layer: Layer, tensors: Tensors, shape: Sequence[int], *, scale: float, dyn_dim: int | None = None
) -> Term:
    """What a layer changes in a weight of this shape, which it fits, computed in float32.

    tensors: the layer's, on the weight's device.
    """
    narrow = changed_shape(layer.shape, shape)
    assert narrow is not None
    made = KINDS[layer.kind].term(Use(tensors, layer, narrow, scale, dyn_dim))
    return made if narrow == tuple(shape) else _WIDENED[type(made)](made, narrow)


def _widened_factors(term: Factors, narrow: tuple[int, ...]) -> Factors:
    down = delta.for_inpainting(term.down.reshape(-1, *narrow[1:]))
    return term._replace(down=down.flatten(1))


def _widened_dense(term: Dense, narrow: tuple[int, ...]) -> Dense:
    return term._replace(delta=delta.for_inpainting(term.delta))


def _widened_rewrite(term: Rewrite, narrow: tuple[int, ...]) -> Rewrite:
    return term._replace(delta=lambda weight: delta.for_inpainting(term.delta(weight[:, : narrow[1]])))


_WIDENED: Mapping[type, Callable[..., Term]] = {
    Factors: _widened_factors,
    Dense: _widened_dense,
    Rewrite: _widened_rewrite,
}


# The change that each kind makes.


def _by_dora(use: Use, change: Tensor, scale: float) -> Rewrite:
    """DoRA around a change of full strength."""
    magnitude = shapes.magnitude(use.tensors)
    sides = (len(magnitude), 1) if magnitude.ndim == 1 else tuple(magnitude.shape)
    shaped = magnitude.reshape(*sides, *[1] * (len(use.shape) - 2))
    return Rewrite(partial(rewrite.dora, change=change, magnitude=shaped), scale)


def _lora_term(use: Use) -> Term:
    tensors, down, up = use.tensors, use.tensors["down"], use.tensors["up"]
    if "mid" in tensors:
        down = delta.tucker_down(tensors["mid"], down)
    elif use.dyn_dim is not None:
        down, up = down[: use.dyn_dim], up[:, : use.dyn_dim]
    factors = delta.lora_factors(down, up, use.strength)
    if not shapes.MAGNITUDES & tensors.keys():
        return factors
    change = use.layer.strength * (factors.up.float() @ factors.down.float())
    return _by_dora(use, change.reshape(use.shape), use.scale)


def _dense(change: Callable[[Tensors], Tensor]) -> Callable[[Use], Term]:
    """The term of a kind that adds a change."""

    def term(use: Use) -> Term:
        made = change(use.tensors).float().reshape(use.shape)
        if shapes.MAGNITUDES & use.tensors.keys():
            return _by_dora(use, use.layer.strength * made, use.scale)
        return Dense(made, use.strength)

    return term


def _loha(tensors: Tensors) -> Tensor:
    w1_a, w1_b, w2_a, w2_b = (tensors[f"hada_{role}"] for role in ("w1_a", "w1_b", "w2_a", "w2_b"))
    return delta.loha(w1_a, w1_b, w2_a, w2_b, tensors.get("hada_t1"), tensors.get("hada_t2"))


def _lokr(tensors: Tensors) -> Tensor:
    return delta.lokr(_whole(tensors, "lokr_w1", None), _whole(tensors, "lokr_w2", tensors.get("lokr_t2")))


def _whole(tensors: Tensors, role: str, mid: Tensor | None) -> Tensor:
    if role in tensors:
        return tensors[role]
    a, b = tensors[f"{role}_a"], tensors[f"{role}_b"]
    return a.float() @ b.float().flatten(1) if mid is None else delta.cp_product(mid, a, b)


def _role(role: str) -> Callable[[Tensors], Tensor]:
    return lambda tensors: tensors[role]


def _ia3_term(use: Use) -> Term:
    """LyCORIS's: the factor less 1."""
    shape = (1, -1) if use.tensors["on_input"].item() else (-1, 1)
    return _scaling(use, use.tensors["weight"].float(), shape)


def _peft_ia3_term(role: str) -> Callable[[Use], Term]:
    shape = (1, -1) if role == "ia3_in" else (-1, 1)
    return lambda use: _scaling(use, use.tensors[role].float() - 1, shape)


def _scaling(use: Use, factor: Tensor, shape: tuple[int, int]) -> Rewrite:
    sides = (*shape, 1, 1)[: len(use.shape)]
    return Rewrite(partial(rewrite.scaled, factor=factor.reshape(sides)), use.scale)


def _oft_term(use: Use) -> Term:
    return _turned(rotation.oft, _turns(use, "oft_blocks"), use)


def _boft_term(use: Use) -> Term:
    return _turned(rotation.boft, _turns(use, "boft_blocks"), use)


def _turns(use: Use, role: str) -> Tensor:
    limit = use.layer.alpha * use.shape[0]
    return rotation.cayley(rotation.skew(use.tensors[role], limit))


def _old_oft_term(use: Use) -> Term:
    return _turned(rotation.oft, use.tensors["oft_diag"], use)


def _turned(change: Callable[..., Tensor], turns: Tensor, use: Use) -> Rewrite:
    return Rewrite(partial(change, turns=turns, rescale=use.tensors.get("rescale")), use.scale)


def _peft_oft_term(use: Use) -> Term:
    entries, terms = rotation.peft_skew(use.tensors["oft_R"]), int(use.layer.alpha)
    turns = rotation.cayley_series(entries, terms) if terms else rotation.cayley(-entries)
    return Rewrite(partial(rotation.peft_oft, turns=turns), use.scale)


def _peft_boft_term(use: Use) -> Term:
    blocks, gain = use.tensors["boft_R"], use.tensors["boft_s"]
    return Rewrite(partial(rotation.peft_boft, blocks=blocks, gain=gain), use.scale)


def _glora_term(use: Use) -> Term:
    parts = shapes.glora_parts(use.tensors)
    down = parts.down if parts.mid is None else delta.tucker_down(parts.mid, parts.down)
    change = parts.up.float().flatten(1) @ down.float().flatten(1)
    inner, outer = parts.inner.flatten(1), parts.outer.flatten(1)
    rewritten = partial(rewrite.glora, inner=inner, outer=outer, change=change.reshape(use.shape))
    return Rewrite(rewritten, use.strength)


def _glora_rank(tensors: Tensors) -> int:
    return min(tensors["a1"].shape[:2])


def _lokr_rank(tensors: Tensors) -> int | None:
    """None where both factors are whole: LyCORIS has them at full strength whatever alpha says."""
    halves = [tensors[role] for role in ("lokr_w2_b", "lokr_w1_b") if role in tensors]
    return halves[0].shape[0] if halves else None


KINDS: Mapping[str, Kind] = {
    "LoRA": Kind(
        (("down",), ("up",)),
        shapes.lora,
        _lora_term,
        takes="mid alpha dora_scale magnitude",
        rank=lambda tensors: tensors["down"].shape[0],
    ),
    "LoHa": Kind(
        (("hada_w1_a",), ("hada_w1_b",), ("hada_w2_a",), ("hada_w2_b",)),
        shapes.loha,
        _dense(_loha),
        takes="hada_t1 hada_t2 alpha dora_scale magnitude",
        rank=lambda tensors: tensors["hada_w1_b"].shape[0],
    ),
    "LoKr": Kind(
        (("lokr_w1", "lokr_w1_a lokr_w1_b"), ("lokr_w2", "lokr_w2_a lokr_w2_b")),
        shapes.lokr,
        _dense(_lokr),
        takes="lokr_t2 alpha dora_scale magnitude",
        rank=_lokr_rank,
    ),
    "full difference": Kind(
        (("diff",),), shapes.full, _dense(_role("diff")), takes="alpha dora_scale magnitude"
    ),
    "difference of a norm": Kind(
        (("w_norm",),), shapes.length("w_norm"), _dense(_role("w_norm")), takes="alpha"
    ),
    "(IA)3": Kind((("weight",), ("on_input",)), shapes.ia3, _ia3_term, takes="alpha"),
    "(IA)3 of peft": Kind(
        (("ia3_out",),),
        lambda tensors: (tensors["ia3_out"].numel(), None, None, None),
        _peft_ia3_term("ia3_out"),
    ),
    "(IA)3 of peft for inputs": Kind(
        (("ia3_in",),),
        lambda tensors: (None, tensors["ia3_in"].numel(), None, None),
        _peft_ia3_term("ia3_in"),
    ),
    "OFT": Kind((("oft_blocks",),), shapes.rotated("oft_blocks", 3), _oft_term, takes="rescale alpha"),
    "BOFT": Kind((("boft_blocks",),), shapes.rotated("boft_blocks", 4), _boft_term, takes="rescale alpha"),
    "old OFT": Kind((("oft_diag",),), shapes.rotated("oft_diag", 3), _old_oft_term, takes="rescale alpha"),
    "OFT of peft": Kind((("oft_R",),), shapes.peft_oft, _peft_oft_term, takes="alpha"),
    "BOFT of peft": Kind((("boft_R",), ("boft_s",)), shapes.peft_boft, _peft_boft_term),
    "GLoRA": Kind(
        (("a1",), ("a2",), ("b1",), ("b2",)), shapes.glora, _glora_term, takes="bm alpha", rank=_glora_rank
    ),
    "difference of a bias": Kind(
        (("diff_b",),), shapes.length("diff_b"), _dense(_role("diff_b")), parameter="bias"
    ),
    "difference of a norm's bias": Kind(
        (("b_norm",),), shapes.length("b_norm"), _dense(_role("b_norm")), parameter="bias"
    ),
    "LoRA of a bias": Kind(
        (("up_bias",),),
        shapes.length("up_bias"),
        _dense(_role("up_bias")),
        takes="alpha down",
        rank=lambda tensors: tensors["down"].shape[0] if "down" in tensors else None,
        parameter="bias",
    ),
    "bias with (IA)3 of peft": Kind(
        (("ia3_out",),),
        lambda tensors: (tensors["ia3_out"].numel(),),
        _peft_ia3_term("ia3_out"),
        parameter="bias",
        is_implied=True,
    ),
}
"""By name. `alpha` is taken also where it says nothing. A weight's kinds come before a bias's."""
