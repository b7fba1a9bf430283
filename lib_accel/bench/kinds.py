"""Networks of every kind with seeded numbers, and what each makes of a weight by its plain dense formula.

The formulas are written down here a second time, in float64 and one weight at a time, so that they can judge
the library's. Those that the webui knows are the webui's (extensions-builtin/Lora), since it is what shows
users their pictures; each row says else whose formula it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

RANK = 4
SHARE = 0.1  # size of a change against the weight's own
_BLOCKS = 4  # of an orthogonal network, and the side of LoKr's small matrix
_BUTTERFLY, _FACTORS = 4, 3  # size of BOFT's blocks, and how many rotations follow each other

Tensors = dict[str, Tensor]
Given = Mapping[str, Tensor]


class Draw:
    """Normal numbers of one network; equal seeds, equal numbers."""

    def __init__(self, seed: int) -> None:
        self._source = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        """So many numbers, float32."""
        return torch.randn(*shape, generator=self._source)


@dataclass(frozen=True)
class Kind:
    """How a kind's tensors for one layer are made, and the weight that they make at full strength.

    changed, changed_bias: take and give float64. of_bias: the tensor that a layer without a bias has not.
    """

    make: Callable[[Tensor, Draw], Tensors]
    changed: Callable[[Tensor, Given], Tensor]
    layers: str = "matrices"  # or "linear", "kernels", "norms"
    changed_bias: Callable[[Tensor, Given], Tensor] | None = None
    of_bias: str | None = None


def _strength(given: Given, rank: int) -> float:
    return given["alpha"].item() / rank if "alpha" in given else 1.0


def _gain(change: Tensor, weight: Tensor) -> float:
    return float(SHARE * weight.norm() / change.norm())


def _alpha(value: float = RANK / 2) -> Tensors:
    return {"alpha": torch.tensor(value)}


# LoRA, and what is made from it


def _lora(weight: Tensor, draw: Draw) -> Tensors:
    outputs, inputs, *kernel = weight.shape
    up, down = draw(outputs, RANK), draw(RANK, inputs, *kernel)
    up = up * _gain(up @ down.flatten(1), weight)
    return {
        "lora_up.weight": up.reshape(outputs, RANK, *[1] * len(kernel)),
        "lora_down.weight": down,
        **_alpha(),
    }


def _lora_delta(weight: Tensor, given: Given) -> Tensor:
    up, down = given["lora_up.weight"].flatten(1), given["lora_down.weight"].flatten(1)
    return _strength(given, RANK) * (up @ down).reshape(weight.shape)


def _biased(weight: Tensor, draw: Draw) -> Tensors:
    return _lora(weight, draw) | {"lora_up.bias": SHARE * draw(weight.shape[0])}


def _biased_bias(bias: Tensor, given: Given) -> Tensor:
    return bias + _strength(given, RANK) * given["lora_up.bias"]


def _locon(weight: Tensor, draw: Draw) -> Tensors:
    outputs, inputs, *kernel = weight.shape
    return {
        "lora_up.weight": draw(outputs, RANK, 1, 1),
        "lora_down.weight": draw(RANK, inputs, 1, 1),
        "lora_mid.weight": draw(RANK, RANK, *kernel) * _spread(weight),
        **_alpha(),
    }


def _locon_changed(weight: Tensor, given: Given) -> Tensor:
    up, mid, down = (given[f"lora_{part}.weight"] for part in ("up", "mid", "down"))
    delta = torch.einsum("op,pqhw,qi->oihw", up[:, :, 0, 0], mid, down[:, :, 0, 0])
    return weight + _strength(given, RANK) * delta


def _spread(weight: Tensor, terms: int = RANK * RANK) -> float:
    """What one factor is multiplied by where the change is a sum of so many products of normal numbers."""
    return float(SHARE * weight.std() / terms**0.5)


def _dora_by_input(weight: Tensor, draw: Draw) -> Tensors:
    return _lora(weight, draw) | {
        "dora_scale": _norms(weight, 1) * (1 + 0.1 * draw(*_norms(weight, 1).shape))
    }


def _dora_by_output(weight: Tensor, draw: Draw) -> Tensors:
    return _lora(weight, draw) | {
        "dora_scale": _norms(weight, 0) * (1 + 0.1 * draw(*_norms(weight, 0).shape))
    }


def _norms(weight: Tensor, kept: int) -> Tensor:
    """Norms over all dimensions but the one that is kept, in a shape that multiplies the weight."""
    return weight.square().sum([each for each in range(weight.ndim) if each != kept], keepdim=True).sqrt()


def _dora_changed(weight: Tensor, given: Given) -> Tensor:
    merged, wanted = weight + _lora_delta(weight, given), given["dora_scale"]
    return merged * (wanted / _norms(merged, 0 if wanted.shape[0] == weight.shape[0] != 1 else 1))


def _peft_dora(weight: Tensor, draw: Draw) -> Tensors:
    magnitude = _norms(weight, 0).flatten()
    return _lora(weight, draw) | {"lora_magnitude_vector": magnitude * (1 + 0.1 * draw(len(magnitude)))}


def _peft_dora_changed(weight: Tensor, given: Given) -> Tensor:
    merged, magnitude = weight + _lora_delta(weight, given), given["lora_magnitude_vector"]
    return merged * magnitude.reshape(-1, *[1] * (weight.ndim - 1)) / _norms(merged, 0)


# Hadamard and Kronecker products


def _loha(weight: Tensor, draw: Draw) -> Tensors:
    outputs, inputs = weight.flatten(1).shape
    made = {f"hada_w{half}_a": draw(outputs, RANK) for half in (1, 2)}
    made |= {f"hada_w{half}_b": draw(RANK, inputs) for half in (1, 2)}
    made["hada_w1_a"] *= _spread(weight)
    return made | _alpha()


def _loha_changed(weight: Tensor, given: Given) -> Tensor:
    halves = [given[f"hada_w{half}_a"] @ given[f"hada_w{half}_b"] for half in (1, 2)]
    return weight + _strength(given, RANK) * (halves[0] * halves[1]).reshape(weight.shape)


def _loha_mid(weight: Tensor, draw: Draw) -> Tensors:
    outputs, inputs, *kernel = weight.shape
    made = {f"hada_t{half}": draw(RANK, RANK, *kernel) for half in (1, 2)}
    made |= {f"hada_w{half}_a": draw(RANK, outputs) for half in (1, 2)}
    made |= {f"hada_w{half}_b": draw(RANK, inputs) for half in (1, 2)}
    made["hada_t1"] *= _spread(weight, RANK**4)
    return made | _alpha()


def _loha_mid_changed(weight: Tensor, given: Given) -> Tensor:
    halves = [_kernel(*(given[f"hada_{part}"] for part in (f"t{n}", f"w{n}_a", f"w{n}_b"))) for n in (1, 2)]
    return weight + _strength(given, RANK) * halves[0] * halves[1]


def _kernel(mid: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("pqhw,po,qi->oihw", mid, a, b)


def _lokr(weight: Tensor, draw: Draw) -> Tensors:
    outputs, inputs = weight.flatten(1).shape
    return {
        "lokr_w1": draw(_BLOCKS, _BLOCKS),
        "lokr_w2_a": draw(outputs // _BLOCKS, RANK) * _spread(weight, RANK),
        "lokr_w2_b": draw(RANK, inputs // _BLOCKS),
        **_alpha(),
    }


def _lokr_changed(weight: Tensor, given: Given) -> Tensor:
    delta = _kronecker(given["lokr_w1"], given["lokr_w2_a"] @ given["lokr_w2_b"])
    return weight + _strength(given, RANK) * delta.reshape(weight.shape)


def _kronecker(small: Tensor, large: Tensor) -> Tensor:
    """Entry by entry: `[a * rows + b, c * columns + d] = small[a, c] * large[b, d]`."""
    (rows, columns), tail = large.shape[:2], large.shape[2:]
    product = torch.einsum("ac,bd...->abcd...", small, large)
    return product.reshape(small.shape[0] * rows, small.shape[1] * columns, *tail)


def _lokr_mid(weight: Tensor, draw: Draw) -> Tensors:
    outputs, inputs, *kernel = weight.shape
    return {
        "lokr_w1": draw(_BLOCKS, _BLOCKS),
        "lokr_w2_a": draw(RANK, outputs // _BLOCKS),
        "lokr_w2_b": draw(RANK, inputs // _BLOCKS),
        "lokr_t2": draw(RANK, RANK, *kernel) * _spread(weight),
        **_alpha(),
    }


def _lokr_mid_changed(weight: Tensor, given: Given) -> Tensor:
    large = _kernel(given["lokr_t2"], given["lokr_w2_a"], given["lokr_w2_b"])
    return weight + _strength(given, RANK) * _kronecker(given["lokr_w1"], large)


# Factors of the weight itself


def _ia3(weight: Tensor, draw: Draw) -> Tensors:
    on_input = weight.shape[1] > weight.shape[0]  # as of a feed-forward's last layer
    return {
        "weight": SHARE * draw(weight.shape[1 if on_input else 0]),
        "on_input": torch.tensor(on_input),
    }


def _ia3_changed(weight: Tensor, given: Given) -> Tensor:
    return weight * (1 + given["weight"].reshape((1, -1) if given["on_input"] else (-1, 1)))


def _peft_ia3(weight: Tensor, draw: Draw) -> Tensors:
    on_input = weight.shape[1] > weight.shape[0]
    return {"ia3_l": 1 + SHARE * draw(*((1, weight.shape[1]) if on_input else (weight.shape[0], 1)))}


def _peft_ia3_changed(weight: Tensor, given: Given) -> Tensor:
    return weight * given["ia3_l"]


def _peft_ia3_bias(bias: Tensor, given: Given) -> Tensor:
    """peft multiplies what a layer gives, its bias too; not so where it multiplies what it takes."""
    return bias if given["ia3_l"].shape[0] == 1 else bias * given["ia3_l"].flatten()


def _glora(weight: Tensor, draw: Draw) -> Tensors:
    outputs, inputs = weight.shape
    share = SHARE / (inputs * RANK) ** 0.5
    return {
        "a1.weight": draw(RANK, inputs) * share,
        "a2.weight": draw(inputs, RANK),
        "b1.weight": draw(RANK, inputs) * _spread(weight, RANK),
        "b2.weight": draw(outputs, RANK),
        **_alpha(RANK),  # of no effect: LyCORIS heeds it, the webui does not
    }


def _glora_changed(weight: Tensor, given: Given) -> Tensor:
    a1, a2, b1, b2 = (given[f"{part}.weight"] for part in ("a1", "a2", "b1", "b2"))
    return weight + _strength(given, RANK) * (b2 @ b1 + weight @ a2 @ a1)


def _glora_now(weight: Tensor, draw: Draw) -> Tensors:
    made = _glora(weight, draw)
    return {name.translate(_SWAPPED): value for name, value in made.items()}


# LyCORIS 2 and later calls first what was second, so that only shapes tell which is meant.
_SWAPPED = str.maketrans("12", "21")


def _glora_now_changed(weight: Tensor, given: Given) -> Tensor:
    return _glora_changed(weight, {name.translate(_SWAPPED): value for name, value in given.items()})


# Rotations of the outputs (webui, kohya, LyCORIS) or of the inputs (peft, OneTrainer)


def _oft(weight: Tensor, draw: Draw) -> Tensors:
    size = weight.shape[0] // _BLOCKS
    blocks = draw(_BLOCKS, size, size) * SHARE / (8 * size) ** 0.5
    limit = 0.5 * (blocks - blocks.mT).norm()  # a limit that is met: else it would go unseen
    return {"oft_blocks": blocks, "alpha": limit / weight.shape[0]}


def _oft_rescaled(weight: Tensor, draw: Draw) -> Tensors:
    rescale = 1 + SHARE * draw(weight.shape[0], *[1] * (weight.ndim - 1))
    return _oft(weight, draw) | {"rescale": rescale, "alpha": torch.tensor(0.0)}


def _oft_changed(weight: Tensor, given: Given) -> Tensor:
    skew = given["oft_blocks"] - given["oft_blocks"].mT
    limit, norm = given["alpha"].item() * weight.shape[0], skew.norm().item()
    if 0 < limit < norm:
        skew = skew * (limit / norm)
    turned = _diagonal(_cayley(skew)).mT @ weight.flatten(1)
    return turned.reshape(weight.shape) * given.get("rescale", 1.0)


def _cayley(skew: Tensor) -> Tensor:
    one = torch.eye(skew.shape[-1], dtype=skew.dtype)
    inverse: Tensor = torch.linalg.inv(one - skew)
    return (one + skew) @ inverse


def _diagonal(blocks: Tensor) -> Tensor:
    """The blocks along the diagonal of a matrix that is 0 elsewhere."""
    number, size = blocks.shape[:2]
    one = torch.eye(number, dtype=blocks.dtype)
    return torch.einsum("kab,kl->kalb", blocks, one).reshape(number * size, number * size)


def _boft(weight: Tensor, draw: Draw) -> Tensors:
    blocks = draw(_FACTORS, weight.shape[0] // _BUTTERFLY, _BUTTERFLY, _BUTTERFLY)
    return {"oft_blocks": blocks * SHARE / (8 * _BUTTERFLY * _FACTORS) ** 0.5, "alpha": torch.tensor(0.0)}


def _boft_changed(weight: Tensor, given: Given) -> Tensor:
    rotations = _cayley(given["oft_blocks"] - given["oft_blocks"].mT)
    rows = weight.flatten(1)
    for level, blocks in enumerate(rotations):
        # Which rows meet in a block: with each level they lie twice as far apart.
        order = torch.arange(len(rows)).reshape(-1, 2, 2**level * _BUTTERFLY // 2).mT.reshape(-1)
        turned = torch.empty_like(rows)
        turned[order] = _diagonal(blocks) @ rows[order]
        rows = turned
    return rows.reshape(weight.shape)


def _old_oft(weight: Tensor, draw: Draw) -> Tensors:
    size = weight.shape[0] // _BLOCKS
    blocks = draw(_BLOCKS, size, size) * SHARE / (8 * size) ** 0.5
    return {"oft_diag": _cayley(blocks - blocks.mT)}


def _old_oft_changed(weight: Tensor, given: Given) -> Tensor:
    return (_diagonal(given["oft_diag"]).mT @ weight.flatten(1)).reshape(weight.shape)


def _peft_boft(weight: Tensor, draw: Draw) -> Tensors:
    blocks = draw(_FACTORS, weight.shape[1] // _BUTTERFLY, _BUTTERFLY, _BUTTERFLY)
    return {
        "boft_R": blocks * SHARE / (2 * _BUTTERFLY * _FACTORS) ** 0.5,
        "boft_s": 1 + SHARE * draw(weight.shape[0], 1),
    }


def _peft_boft_changed(weight: Tensor, given: Given) -> Tensor:
    columns = weight.mT
    for level, blocks in enumerate(given["boft_R"]):
        turn = _diagonal(_cayley((blocks.mT - blocks) / 2))
        # Half blocks, in groups of 2 ** (level + 1): those with even numbers first, then the odd ones.
        halves = torch.arange(len(columns)).reshape(-1, 2 ** (level + 1), _BUTTERFLY // 2)
        order = torch.cat([halves[:, 0::2], halves[:, 1::2]], dim=1).reshape(-1)
        if level == 0:
            order = torch.arange(len(columns))
        swap = torch.eye(len(columns), dtype=weight.dtype)[order]
        columns = swap @ turn @ swap.mT @ columns
    return columns.mT * given["boft_s"]


def _peft_oft(weight: Tensor, draw: Draw) -> Tensors:
    size = weight.shape[1] // _BLOCKS
    return {"oft_R.weight": draw(_BLOCKS, size * (size - 1) // 2) * SHARE / (4 * size) ** 0.5}


def _peft_oft_changed(weight: Tensor, given: Given) -> Tensor:
    entries = given["oft_R.weight"]
    size = weight.shape[1] // len(entries)
    skew = torch.zeros(len(entries), size, size, dtype=weight.dtype)
    rows, columns = torch.triu_indices(size, size, 1)
    skew[:, rows, columns] = entries
    skew = skew - skew.mT
    square = skew @ skew
    one = torch.eye(size, dtype=weight.dtype)
    # peft's default is not the rotation but the beginning of its series.
    turn = one + 2 * skew + 2 * square + 2 * square @ skew + square @ square
    return weight @ _diagonal(turn).mT


# Differences as they are


def _full(weight: Tensor, draw: Draw) -> Tensors:
    return {"diff": draw(*weight.shape) * _spread(weight, 1), "diff_b": SHARE * draw(weight.shape[0])}


def _norm(weight: Tensor, draw: Draw) -> Tensors:
    return {"w_norm": SHARE * draw(*weight.shape), "b_norm": SHARE * draw(*weight.shape)}


KINDS: dict[str, Kind] = {
    "LoRA": Kind(_lora, lambda weight, given: weight + _lora_delta(weight, given)),
    "LoCon": Kind(_lora, lambda weight, given: weight + _lora_delta(weight, given), "kernels"),
    "LoRA with a bias": Kind(
        _biased,
        lambda weight, given: weight + _lora_delta(weight, given),
        changed_bias=_biased_bias,
        of_bias="lora_up.bias",
    ),
    "LoCon with mid": Kind(_locon, _locon_changed, "kernels"),
    "LoHa": Kind(_loha, _loha_changed),
    "LoHa with mid": Kind(_loha_mid, _loha_mid_changed, "kernels"),
    "LoKr": Kind(_lokr, _lokr_changed),
    "LoKr with mid": Kind(_lokr_mid, _lokr_mid_changed, "kernels"),
    "DoRA by input": Kind(_dora_by_input, _dora_changed),
    "DoRA by output": Kind(_dora_by_output, _dora_changed),
    "DoRA of peft": Kind(_peft_dora, _peft_dora_changed),
    "(IA)3": Kind(_ia3, _ia3_changed, "linear"),
    "(IA)3 of peft": Kind(_peft_ia3, _peft_ia3_changed, "linear", _peft_ia3_bias),
    "OFT": Kind(_oft, _oft_changed),
    "OFT rescaled": Kind(_oft_rescaled, _oft_changed),
    "OFT of peft": Kind(_peft_oft, _peft_oft_changed, "linear"),
    "OFT, old": Kind(_old_oft, _old_oft_changed),
    "BOFT": Kind(_boft, _boft_changed),
    "BOFT of peft": Kind(_peft_boft, _peft_boft_changed, "linear"),
    "GLoRA": Kind(_glora, _glora_changed, "linear"),
    "GLoRA of LyCORIS 2": Kind(_glora_now, _glora_now_changed, "linear"),
    "full": Kind(
        _full,
        lambda weight, given: weight + given["diff"],
        changed_bias=lambda bias, given: bias + given["diff_b"],
        of_bias="diff_b",
    ),
    "norm": Kind(
        _norm,
        lambda weight, given: weight + given["w_norm"],
        "norms",
        changed_bias=lambda bias, given: bias + given["b_norm"],
        of_bias="b_norm",
    ),
}
