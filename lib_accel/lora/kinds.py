"""Each kind of network: what makes it known, the weights that it is for, the change that it makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor

from lib_accel.lora import delta, rewrite, rotation
from lib_accel.lora.network import Layer, Shape
from lib_accel.lora.terms import Dense, Factors, Rewrite, Term

Tensors = Mapping[str, Tensor]


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
    return len(have) == len(want) and all(a in (None, b) for a, b in zip(have, want, strict=True))


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


# What the tensors of each kind say of the weight's shape. A linear factor may be stored as a 1x1 kernel.


def _pair(left: Tensor, right: Tensor) -> bool:
    """Whether `left @ right` can be computed, once kernels are laid out in rows."""
    return left.ndim in (2, 4) and right.ndim in (2, 4) and left.flatten(1).shape[1] == right.shape[0]


def _is_between(mid: Tensor, left: int, right: int) -> bool:
    """Whether a mid tensor (rank, rank, height, width) fits between factors of these ranks."""
    return mid.ndim == 4 and tuple(mid.shape[:2]) == (left, right)


def _is_pointwise(tensor: Tensor) -> bool:
    return tensor.ndim in (2, 4) and all(side == 1 for side in tensor.shape[2:])


def _kernel(tensor: Tensor) -> tuple[int, int]:
    return (1, 1) if tensor.ndim == 2 else (tensor.shape[2], tensor.shape[3])


def _lora_shape(tensors: Tensors) -> Shape | None:
    down, up, mid = tensors["down"], tensors["up"], tensors.get("mid")
    if not (_is_pointwise(up) and _pair(up, down)):
        return None
    if mid is not None and not (_is_between(mid, up.shape[1], len(down)) and _is_pointwise(down)):
        return None
    return _if_magnitude_fits(tensors, (up.shape[0], down.shape[1], *_kernel(down if mid is None else mid)))


def _loha_shape(tensors: Tensors) -> Shape | None:
    shapes = {
        _half_shape(*(tensors.get(f"hada_{role}") for role in (f"w{n}_a", f"w{n}_b", f"t{n}")))
        for n in (1, 2)
    }
    return _if_magnitude_fits(tensors, shapes.pop()) if len(shapes) == 1 else None


def _half_shape(a: Tensor | None, b: Tensor | None, mid: Tensor | None) -> Shape | None:
    """The shape of `a @ b` or, with a mid tensor, of `delta.cp_product`."""
    assert a is not None
    assert b is not None
    if mid is not None:
        both = a.ndim == b.ndim == 2 and _is_between(mid, len(a), len(b))
        return (a.shape[1], b.shape[1], *mid.shape[2:]) if both else None
    return (a.shape[0], b[0].numel()) if _pair(a, b) else None


def _lokr_shape(tensors: Tensors) -> Shape | None:
    small = _whole_shape(tensors, "lokr_w1", None)
    large = _whole_shape(tensors, "lokr_w2", tensors.get("lokr_t2"))
    if small is None or large is None or len(small) != 2 or len(large) not in (2, 4):
        return None
    sides = [a * b for a, b in zip(small, large[:2], strict=True) if a is not None and b is not None]
    return _if_magnitude_fits(tensors, (*sides, *large[2:]))


def _whole_shape(tensors: Tensors, role: str, mid: Tensor | None) -> Shape | None:
    if role in tensors:
        return tuple(tensors[role].shape)
    return _half_shape(tensors[f"{role}_a"], tensors[f"{role}_b"], mid)


def _full_shape(tensors: Tensors) -> Shape | None:
    return _if_magnitude_fits(tensors, tuple(tensors["diff"].shape))


def _if_magnitude_fits(tensors: Tensors, shape: Shape | None) -> Shape | None:
    """The shape, unless there is a magnitude that has one for neither its outputs nor its inputs."""
    if shape is None or not _DORA & tensors.keys():
        return shape
    rows, columns = (*_magnitude(tensors).shape, 1)[:2]
    inputs = shape[1] if len(shape) > 1 else None
    by_output, by_input = (rows, columns) == (shape[0], 1), rows == 1 and inputs is not None
    return shape if by_output or (by_input and inputs % columns == 0) else None


def _length(role: str) -> Callable[[Tensors], Shape | None]:
    """A vector's."""
    return lambda tensors: tuple(tensors[role].shape) if tensors[role].ndim == 1 else None


def _ia3_shape(tensors: Tensors) -> Shape | None:
    count = tensors["weight"].numel()
    return (None, count, None, None) if tensors["on_input"].item() else (count, None, None, None)


def _rotation_shape(role: str, ndim: int) -> Callable[[Tensors], Shape | None]:
    """Of blocks of outputs, in one level or in several."""

    def shape(tensors: Tensors) -> Shape | None:
        blocks, rescale = tensors[role], tensors.get("rescale")
        if blocks.ndim != ndim or blocks.shape[-1] != blocks.shape[-2]:
            return None
        count = blocks.shape[-3] * blocks.shape[-1]
        if ndim == 4 and count % (blocks.shape[-1] // 2 * 2 ** len(blocks)):  # outputs do not meet in pairs
            return None
        return None if rescale is not None and rescale.numel() != count else (count, None, None, None)

    return shape


def _peft_oft_shape(tensors: Tensors) -> Shape | None:
    entries = tensors["oft_R"]
    size = rotation.block_size(entries.shape[1]) if entries.ndim == 2 else 0
    if size == 0:
        return None
    return (None, len(entries) * size if len(entries) > 1 else None)  # one block may stand for all


def _peft_boft_shape(tensors: Tensors) -> Shape | None:
    blocks, gain = tensors["boft_R"], tensors["boft_s"]
    if blocks.ndim != 4 or blocks.shape[2] != blocks.shape[3]:
        return None
    levels, number, size = blocks.shape[:3]
    is_even = levels == 1 or (size % 2 == 0 and number % 2 ** (levels - 1) == 0)
    return (gain.numel(), number * size) if is_even else None


def _glora_shape(tensors: Tensors) -> Shape | None:
    parts = _glora_parts(tensors)
    if not all(_is_pointwise(each) for each in (parts.inner, parts.outer, parts.up)):
        return None
    if not (_pair(parts.inner, parts.outer) and parts.inner.shape[0] == parts.outer.shape[1]):
        return None
    down, mid = parts.down, parts.mid
    fits = _pair(parts.up, down) and down.shape[1] == parts.inner.shape[0]
    if mid is not None:
        fits = fits and _is_pointwise(down) and _is_between(mid, parts.up.shape[1], len(down))
    return (parts.up.shape[0], down.shape[1], *_kernel(down if mid is None else mid)) if fits else None


# The change that each kind makes.

_DORA = {"dora_scale", "magnitude"}


def _magnitude(tensors: Tensors) -> Tensor:
    """The norms that DoRA learned, as (out, 1) or (1, in), or all outputs in a row."""
    if "magnitude" in tensors:  # peft's are of outputs, which for convolutions it lays out as (1, out, 1, 1)
        return tensors["magnitude"].flatten()
    scale = tensors["dora_scale"]
    return scale if scale.ndim < 2 else scale.reshape(scale.shape[0], -1)


def _by_dora(use: Use, change: Tensor, scale: float) -> Rewrite:
    """DoRA around a change of full strength."""
    magnitude = _magnitude(use.tensors)
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
    if not _DORA & tensors.keys():
        return factors
    change = use.layer.strength * (factors.up.float() @ factors.down.float())
    return _by_dora(use, change.reshape(use.shape), use.scale)


def _dense(change: Callable[[Tensors], Tensor]) -> Callable[[Use], Term]:
    """The term of a kind that adds a change."""

    def term(use: Use) -> Term:
        made = change(use.tensors).float().reshape(use.shape)
        if _DORA & use.tensors.keys():
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


class _GLora(NamedTuple):
    inner: Tensor  # (in, rank)
    outer: Tensor  # (rank, in)
    up: Tensor  # (out, rank)
    down: Tensor  # (rank, in, ...)
    mid: Tensor | None


def _glora_parts(tensors: Tensors) -> _GLora:
    """LyCORIS 2 and later; before, and still in A1111's extension, what is first was called second."""
    first, second = ("1", "2") if tensors["a1"].shape[0] >= tensors["a1"].shape[1] else ("2", "1")
    inner, outer = tensors[f"a{first}"], tensors[f"a{second}"]
    return _GLora(inner, outer, tensors[f"b{first}"], tensors[f"b{second}"], tensors.get("bm"))


def _glora_term(use: Use) -> Term:
    parts = _glora_parts(use.tensors)
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
        _lora_shape,
        _lora_term,
        takes="mid alpha dora_scale magnitude",
        rank=lambda tensors: tensors["down"].shape[0],
    ),
    "LoHa": Kind(
        (("hada_w1_a",), ("hada_w1_b",), ("hada_w2_a",), ("hada_w2_b",)),
        _loha_shape,
        _dense(_loha),
        takes="hada_t1 hada_t2 alpha dora_scale magnitude",
        rank=lambda tensors: tensors["hada_w1_b"].shape[0],
    ),
    "LoKr": Kind(
        (("lokr_w1", "lokr_w1_a lokr_w1_b"), ("lokr_w2", "lokr_w2_a lokr_w2_b")),
        _lokr_shape,
        _dense(_lokr),
        takes="lokr_t2 alpha dora_scale magnitude",
        rank=_lokr_rank,
    ),
    "full difference": Kind(
        (("diff",),), _full_shape, _dense(_role("diff")), takes="alpha dora_scale magnitude"
    ),
    "difference of a norm": Kind((("w_norm",),), _length("w_norm"), _dense(_role("w_norm")), takes="alpha"),
    "(IA)3": Kind((("weight",), ("on_input",)), _ia3_shape, _ia3_term, takes="alpha"),
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
    "OFT": Kind((("oft_blocks",),), _rotation_shape("oft_blocks", 3), _oft_term, takes="rescale alpha"),
    "BOFT": Kind((("boft_blocks",),), _rotation_shape("boft_blocks", 4), _boft_term, takes="rescale alpha"),
    "old OFT": Kind((("oft_diag",),), _rotation_shape("oft_diag", 3), _old_oft_term, takes="rescale alpha"),
    "OFT of peft": Kind((("oft_R",),), _peft_oft_shape, _peft_oft_term, takes="alpha"),
    "BOFT of peft": Kind((("boft_R",), ("boft_s",)), _peft_boft_shape, _peft_boft_term),
    "GLoRA": Kind(
        (("a1",), ("a2",), ("b1",), ("b2",)), _glora_shape, _glora_term, takes="bm alpha", rank=_glora_rank
    ),
    "difference of a bias": Kind(
        (("diff_b",),), _length("diff_b"), _dense(_role("diff_b")), parameter="bias"
    ),
    "difference of a norm's bias": Kind(
        (("b_norm",),), _length("b_norm"), _dense(_role("b_norm")), parameter="bias"
    ),
    "LoRA of a bias": Kind(
        (("up_bias",),),
        _length("up_bias"),
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
