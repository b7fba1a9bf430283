"""Changes that depend on the weight: DoRA, (IA)3, GLoRA.

Each takes the weight as the networks before have left it, in float32 or wider, and returns the difference to
it that the network makes at full strength. It is the difference that a scale multiplies, as in A1111's Lora
extension: LyCORIS and peft put the scale inside, where 0 would not give the weight back.
"""

from __future__ import annotations

import torch
from torch import Tensor


def dora(weight: Tensor, change: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA: `weight + change`, each row or column of it scaled to a learned norm; less the weight.

    weight: (out, in) or (out, in, height, width); change: of its shape. magnitude: (out, 1, ...) for norms by
    output, as peft and LyCORIS 3 have them, or (1, in, ...) for norms by input, as LyCORIS had them before
    and OneTrainer has them. The file's shape tells; A1111's extension takes all for norms by input.
    Source: DoRA, arXiv:2402.09353, equation 5; for convolutions LyCORIS, functional/general.py.
    """
    merged = weight + change.to(weight.dtype)
    kept = 0 if magnitude.shape[0] == weight.shape[0] else 1
    others = [dimension for dimension in range(weight.ndim) if dimension != kept]
    norm = torch.linalg.vector_norm(merged, dim=others, keepdim=True) + torch.finfo(weight.dtype).eps
    difference: Tensor = merged * (magnitude.to(weight.dtype) / norm) - weight
    return difference


def scaled(weight: Tensor, factor: Tensor) -> Tensor:
    """(IA)3: `weight * factor`, one number for each output, (out, 1, ...), or for each input, (1, in, ...).

    LyCORIS stores the factor less 1, so that this is the difference; peft stores the factor.
    Source: (IA)3, arXiv:2205.05638, section 3.3; LyCORIS, modules/ia3.py.
    """
    return weight * factor.to(weight.dtype)


def glora(weight: Tensor, inner: Tensor, outer: Tensor, change: Tensor) -> Tensor:
    """GLoRA: `weight @ inner @ outer + change`, over the inputs.

    inner: (in, rank), outer: (rank, in), change: of the weight's shape.
    Source: GLoRA, arXiv:2306.07967, of which LyCORIS has the terms A and B (modules/glora.py).
    """
    columns = weight.movedim(1, -1)  # inputs last, whatever the kernel
    turned = (columns @ inner.to(weight.dtype)) @ outer.to(weight.dtype)
    return turned.movedim(-1, 1) + change.to(weight.dtype)
