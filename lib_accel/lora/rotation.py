"""Changes that rotate the weight: OFT and BOFT, of kohya and LyCORIS and of peft.

Each takes the weight as the networks before have left it, (out, in) or (out, in, height, width) in float32 or
wider, and returns the difference to it at full strength. kohya's and LyCORIS's rotate the outputs, peft's and
OneTrainer's the inputs. Source: OFT, arXiv:2306.07280; BOFT, arXiv:2311.06243.
"""

from __future__ import annotations

import torch
from torch import Tensor


def skew(blocks: Tensor, limit: float = 0.0) -> Tensor:
    """`blocks - blocks.mT`, made shorter where its norm over all blocks is above a limit; 0 is none.

    blocks: (..., size, size). The limit is the file's alpha times the number of outputs, in kohya
    (networks/oft.py) and LyCORIS (functional/diag_oft.py); this is the constraint of COFT.
    """
    entries = blocks.float() - blocks.float().mT
    norm = torch.linalg.vector_norm(entries)
    share: Tensor = (limit / (norm + 1e-8)).clamp(max=1.0)
    return entries * share if limit > 0 else entries


def cayley(entries: Tensor) -> Tensor:
    """The rotation `(1 + q) @ inverse(1 - q)` of skew-symmetric entries (..., size, size)."""
    one = torch.eye(entries.shape[-1], dtype=torch.float32, device=entries.device)
    turns: Tensor = torch.linalg.solve(one - entries, one + entries)  # both commute
    return turns


def cayley_series(entries: Tensor, terms: int) -> Tensor:
    """The begin of its series, `1 + 2q + 2q^2 + ... + q^(terms - 1)`, with which peft computes since 0.16.

    peft has no shorter one than up to `q^3` where there are more than two terms (oft/layer.py).
    """
    total = torch.eye(entries.shape[-1], dtype=torch.float32, device=entries.device) + 2 * entries
    if terms <= 2:
        return total
    power = entries @ entries
    total = total + 2 * power
    for _ in range(3, terms - 1):
        power = power @ entries
        total = total + 2 * power
    return total + power @ entries


def oft(weight: Tensor, turns: Tensor, rescale: Tensor | None = None) -> Tensor:
    """OFT: outputs in blocks, each turned by the transpose of its rotation, then rescaled if LyCORIS did.

    turns: (number of blocks, size, size); rescale: one number for each output.
    Source: kohya, networks/oft.py; LyCORIS, functional/diag_oft.py.
    """
    number, size = turns.shape[:2]
    rows = weight.reshape(number, size, -1)
    turned = (turns.to(weight.dtype).mT @ rows).reshape(weight.shape)
    return _rescaled(turned, rescale) - weight


def boft(weight: Tensor, turns: Tensor, rescale: Tensor | None = None) -> Tensor:
    """BOFT of LyCORIS: rotations one after the other, in each of which outputs twice as far apart meet.

    turns: (levels, number of blocks, size, size); rescale: one number for each output.
    Source: LyCORIS, functional/boft.py.
    """
    rows = weight.flatten(1)
    for level, blocks in enumerate(turns.to(weight.dtype)):
        number, size = blocks.shape[:2]
        order = _order(len(rows), size // 2 * 2**level, rows.device)
        turned = torch.empty_like(rows)
        turned[order] = (blocks @ rows[order].view(number, size, -1)).flatten(0, 1)
        rows = turned
    return _rescaled(rows.reshape(weight.shape), rescale) - weight


def _order(count: int, distance: int, device: torch.device) -> Tensor:
    """Numbers of the outputs, ordered so that those that meet, at this distance, stand side by side."""
    return torch.arange(count, device=device).view(-1, 2, distance).mT.reshape(-1)


def _rescaled(weight: Tensor, rescale: Tensor | None) -> Tensor:
    if rescale is None:
        return weight
    return weight * rescale.to(weight.dtype).reshape(-1, *[1] * (weight.ndim - 1))


def peft_oft(weight: Tensor, turns: Tensor) -> Tensor:
    """OFT of peft and OneTrainer: blocks of inputs, turned by the transpose of their rotations.

    turns: (number of blocks, size, size), or (1, size, size) for all blocks alike; a convolution's inputs are
    (in, height, width) laid out in a row. Source: peft, oft/layer.py.
    """
    columns = weight.reshape(len(weight), -1, turns.shape[1]).transpose(0, 1)
    turned = columns @ turns.to(weight.dtype).mT
    return turned.transpose(0, 1).reshape(weight.shape) - weight


def peft_skew(entries: Tensor) -> Tensor:
    """Skew-symmetric blocks (number, size, size) from what is above their diagonals, (number, entries)."""
    size = block_size(entries.shape[1])
    blocks = torch.zeros(len(entries), size, size, dtype=torch.float32, device=entries.device)
    rows, columns = torch.triu_indices(size, size, 1, device=entries.device)
    blocks[:, rows, columns] = entries.float()
    return blocks - blocks.mT


def block_size(entries: int) -> int:
    """The side of a matrix with so many entries above its diagonal; 0 if there is none."""
    size = round((1 + (1 + 8 * entries) ** 0.5) / 2)
    return size if size * (size - 1) // 2 == entries else 0


def peft_boft(weight: Tensor, blocks: Tensor, gain: Tensor) -> Tensor:
    """BOFT of peft: inputs turned level by level, then a gain for each output.

    blocks: (levels, number of blocks, size, size), as the file has them; gain: one number for each output.
    Source: peft, boft/layer.py, whose Cayley transform has the opposite sign and half the entries.
    """
    turns = cayley(-0.5 * skew(blocks)).to(weight.dtype)
    rows = weight.flatten(1).T  # inputs
    for level, turn in enumerate(turns):
        number, size = turn.shape[:2]
        order = _halves(len(rows), size // 2, level, rows.device)
        apart = torch.empty_like(rows)
        apart[order] = rows
        rows = (turn @ apart.view(number, size, -1)).flatten(0, 1)[order]
    return _rescaled(rows.T.reshape(weight.shape), gain) - weight


def _halves(count: int, half: int, level: int, device: torch.device) -> Tensor:
    """peft's butterfly: in groups of 2^level blocks, the even half blocks first, then the odd ones."""
    if level == 0:
        return torch.arange(count, device=device)
    return torch.arange(count, device=device).view(-1, 2**level, 2, half).transpose(1, 2).reshape(-1)
