"""Changes of a weight that do not depend on it: LoRA, LoHa, LoKr.

LoRA's stays two factors, whose product it is: those of all networks of a layer are laid side by side and
cost one matrix product, whatever their number. All else is float32, on the device of the tensors given.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lib_accel.lora.terms import Factors

_INPAINT_CHANNELS, _LATENT_CHANNELS = 9, 4


def lora_factors(down: Tensor, up: Tensor, strength: float) -> Factors:
    """LoRA, and LoCon: `strength * up @ down`.

    down: (rank, in) or (rank, in, height, width); up: (out, rank) or (out, rank, 1, 1). Convolving with the
    down kernel and then with the 1x1 up kernel is the same as once with their product over the rank. The
    factors keep their dtype, as far as they can be laid side by side in it.
    Source: LoRA, arXiv:2106.09685, section 4.1; for convolutions LoCon of LyCORIS, arXiv:2309.14859.
    """
    return Factors(_joinable(up).flatten(1), _joinable(down).flatten(1), strength)


def _joinable(factor: Tensor) -> Tensor:
    """The factor, in float32 where it is one of 8 bits, for which torch.cat has no common dtype."""
    return factor.float() if factor.element_size() == 1 else factor


def tucker_down(mid: Tensor, down: Tensor) -> Tensor:
    """LoCon with a mid tensor: its down kernel, `[p, i, h, w] = sum over q of mid[p, q, h, w] * down[q, i]`.

    mid: (rank, rank, height, width), down: (rank, in) or (rank, in, 1, 1); result: (rank, in, height, width).
    It is a Tucker decomposition of the weight change. Source: LoCon of LyCORIS, arXiv:2309.14859.
    """
    rank, inner, (height, width) = mid.shape[0], down.shape[1], mid.shape[2:]
    taps = mid.float().flatten(2).transpose(1, 2)  # (rank, height * width, rank)
    result = torch.zeros(rank, height * width, inner, dtype=torch.float32, device=mid.device)
    result.baddbmm_(taps, down.float().flatten(1).expand(rank, -1, -1))  # in place: autocast leaves it alone
    return result.transpose(1, 2).reshape(rank, inner, height, width)


def for_inpainting(down: Tensor) -> Tensor:
    """A kernel for 4 latent channels, as one for an inpainting UNet's 9 with zeros for the other 5."""
    return torch.nn.functional.pad(down, (0, 0, 0, 0, 0, _INPAINT_CHANNELS - _LATENT_CHANNELS))


def latent_shape(wanted: Sequence[int]) -> tuple[int, ...] | None:
    """The shape of the first layer's weight in a plain UNet, given that of an inpainting UNet; else None."""
    if len(wanted) == 4 and wanted[1] == _INPAINT_CHANNELS:
        return (wanted[0], _LATENT_CHANNELS, *wanted[2:])
    return None


def needs_inpainting(have: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether `for_inpainting` turns factors for a weight of the shape `have` into ones for `wanted`."""
    return tuple(have) == latent_shape(wanted)


def cp_product(mid: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A convolution kernel from its Tucker factors: `[o, i, h, w] = sum over p, q of
    a[p, o] * mid[p, q, h, w] * b[q, i]`.

    mid: (rank, rank, height, width), a: (rank, out), b: (rank, in). Source: LoHa and LoKr of LyCORIS,
    arXiv:2309.14859.
    """
    inner = torch.tensordot(mid.float(), b.float(), ([1], [0]))  # (p, h, w, i)
    kernel: Tensor = torch.tensordot(a.float(), inner, ([0], [0]))
    return kernel.permute(0, 3, 1, 2)


def loha(
    w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor, t1: Tensor | None = None, t2: Tensor | None = None
) -> Tensor:
    """LoHa: the elementwise product of two low-rank matrices, `(w1_a @ w1_b) * (w2_a @ w2_b)`.

    a: (out, rank), b: (rank, in * height * width); with mid tensors t as in `cp_product`, which says how a
    and b are then. Source: FedPara, arXiv:2108.06098; LyCORIS, arXiv:2309.14859.
    """
    halves = (
        a.float() @ b.float().flatten(1) if mid is None else cp_product(mid, a, b)
        for a, b, mid in ((w1_a, w1_b, t1), (w2_a, w2_b, t2))
    )
    first, second = halves
    return first.reshape(second.shape) * second


def lokr(w1: Tensor, w2: Tensor) -> Tensor:
    """LoKr: the Kronecker product of a small matrix (out1, in1) and a larger one (out2, in2, ...).

    Source: KronA, arXiv:2212.10650; LyCORIS, arXiv:2309.14859.
    """
    return torch.kron(w1.float().reshape(*w1.shape[:2], *[1] * (w2.ndim - 2)), w2.float().contiguous())
