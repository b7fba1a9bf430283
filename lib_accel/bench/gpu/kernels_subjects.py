"""What each kernel is measured with: its inputs, what blocks do today instead, and the exact result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.bench.gpu.kernels_shapes import HALF_SILU, SHIFTED, SINGLE, SINGLE_SILU, Shape
from lib_accel.bench.gpu.networks import RANK
from lib_accel.blocks import ops
from lib_accel.blocks.operators.casts import cast
from lib_accel.blocks.operators.group_norm import GroupNormSpec
from lib_accel.blocks.rules import rules_for
from lib_accel.kernels import (
    bias_residual,
    geglu,
    group_norm,
    group_norm_joined,
    layer_norm,
    linear_geglu,
    lora_fuse,
)
from lib_accel.kernels.group_norm import Norm
from lib_accel.kernels.lora_fuse import Layer, Pair
from lib_accel.kernels.tolerance import Tolerance, rounded
from lib_accel.lora.accumulate import write_sum
from lib_accel.lora.terms import Factors

Results = tuple[Tensor, ...]
Way = Callable[..., Results]  # of a subject's inputs

_HALF = torch.float16
_RULES = rules_for("cuda", _HALF)  # on a CPU as well, so that a dry run does the same casts
_GROUPS, _EPS = 32, 1e-5


class Subject(NamedTuple):
    """One kernel at one shape. All ways give results of the same shapes in the same order."""

    inputs: tuple[Any, ...]  # tensors, or tuples of them
    plain: Way  # what blocks do in plain torch
    kernel: Way  # also takes `tile`, one of `candidates` or None for the first of them
    reference: Way
    why_not: Callable[..., tuple[str, ...]]  # of the inputs
    candidates: Callable[..., Sequence[Any]]  # of the inputs, where `why_not` is empty
    exact: Way  # in float64
    tolerance: Tolerance
    least_bytes: int  # to read what goes in and to write what comes out, each once
    flop: float = 0.0  # of products, which tensor cores do
    is_replayed: bool = True  # whether a picture replays it from a graph
    written: Results = ()  # of the inputs, those that are written in place


def subject_of(shape: Shape, device: torch.device) -> Subject:
    """The subject on that device, with inputs of about unit size that are the same at every call."""
    source = torch.Generator().manual_seed(1)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=source).to(device, _HALF)

    return _SUBJECTS[shape.kernel](shape, draw)


class _Use(NamedTuple):
    """How blocks use a group norm."""

    spec: GroupNormSpec
    norm: Norm  # the same for the kernel


# GroupNorm32 of residual blocks, which rounds before SiLU; the VAE's, which autocast leaves in float32 until
# the convolution casts it; and that at the entrance of a transformer.
_USES = {
    HALF_SILU: _Use(GroupNormSpec(_GROUPS, _EPS, True), Norm(_GROUPS, _EPS, _HALF, True)),
    SHIFTED: _Use(GroupNormSpec(_GROUPS, _EPS, True), Norm(_GROUPS, _EPS, _HALF, True)),
    SINGLE_SILU: _Use(
        GroupNormSpec(_GROUPS, 1e-6, False), Norm(_GROUPS, 1e-6, torch.float32, True, out_dtype=_HALF)
    ),
    SINGLE: _Use(
        GroupNormSpec(_GROUPS, 1e-6, False), Norm(_GROUPS, 1e-6, torch.float32, False, out_dtype=_HALF)
    ),
}


def _group_norm(shape: Shape, draw: Callable[..., Tensor]) -> Subject:
    use = _USES[shape.norm]
    x, weight, bias = _laid(draw(*shape.sizes), shape), *_affine(draw, shape.sizes[1])
    shift = (draw(*shape.sizes[:2]),) if shape.norm == SHIFTED else ()
    return Subject(
        (x, weight, bias, *shift),
        plain=lambda x, w, b, *s: (_normed(_shifted(x, *s), w, b, use),),
        kernel=lambda x, w, b, *s, tile=None: (group_norm.launch(x, w, b, use.norm, *s, tile=tile),),
        reference=lambda x, w, b, *s: (group_norm.reference(x, w, b, use.norm, *s),),
        why_not=lambda x, w, b, *s: group_norm.why_not(x, w, b, use.norm, *s),
        candidates=lambda x, w, b, *s: group_norm.candidates(x, w, b, use.norm, *s),
        exact=lambda x, w, b, *s: (_exact_norm(_shifted(x.double(), *s), w, b, use.norm),),
        # Plain torch rounds a shifted image once more, whose values may be larger than what the norm makes.
        tolerance=rounded(times=3, slope=2.0)[_HALF] if shift else group_norm.TOLERANCES[_HALF],
        least_bytes=_size_bytes(x, x, weight, bias, shift),
    )


def _bias_residual(shape: Shape, draw: Callable[..., Tensor]) -> Subject:
    x, residual = (_laid(draw(*shape.sizes), shape) for _ in range(2))
    bias = draw(shape.sizes[1]) / 5
    return Subject(
        (x, bias, residual),
        # A convolution adds its bias in a launch of its own. A linear layer does not: it has no subject here.
        plain=lambda x, b, r: (x + b[:, None, None] + r,),
        kernel=lambda x, b, r, tile=None: (bias_residual.launch(x, b, r, tile=tile),),
        reference=lambda x, b, r: (bias_residual.reference(x, b, r),),
        why_not=bias_residual.why_not,
        candidates=bias_residual.candidates,
        exact=lambda x, b, r: (x.double() + b.double()[:, None, None] + r.double(),),
        # Plain torch rounds twice, the first time a sum that may be larger than the last.
        tolerance=rounded(times=2, slope=4.0)[_HALF],
        least_bytes=_size_bytes(x, x, x, bias),
    )


def _group_norm_joined(shape: Shape, draw: Callable[..., Tensor]) -> Subject:
    use = _USES[shape.norm]
    batch, channels, *sides = shape.sizes
    left, right = (_laid(draw(batch, width, *sides), shape) for width in (channels, shape.right))
    weight, bias = _affine(draw, channels + shape.right)

    def plain(left: Tensor, right: Tensor, weight: Tensor, bias: Tensor) -> Results:
        joined = torch.cat([left, right], dim=1)
        return _normed(joined, weight, bias, use), joined

    def exact(left: Tensor, right: Tensor, weight: Tensor, bias: Tensor) -> Results:
        joined = torch.cat([left, right], dim=1)
        return _exact_norm(joined, weight, bias, use.norm), joined.double()

    def both(way: Any) -> Way:
        return lambda left, right, w, b, **tile: way(left, right, w, b, use.norm, keep=True, **tile)

    return Subject(
        (left, right, weight, bias),
        plain=plain,
        kernel=both(group_norm_joined.launch),
        reference=both(group_norm_joined.reference),
        why_not=lambda left, right, w, b: group_norm_joined.why_not(left, right, w, b, use.norm),
        candidates=lambda left, right, w, b: group_norm_joined.candidates(left, right, w, b, use.norm),
        exact=exact,
        tolerance=group_norm_joined.TOLERANCES[_HALF],
        least_bytes=_size_bytes(*3 * (left, right), weight, bias),
    )


def _layer_norm(shape: Shape, draw: Callable[..., Tensor]) -> Subject:
    x, weight, bias = draw(*shape.sizes), *_affine(draw, shape.sizes[-1])
    readers = shape.readers

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Results:
        normed = ops.layer_norm(x, weight, bias, _EPS, _RULES)
        return tuple(cast(_RULES.matmul, normed)[0] for _ in range(readers))

    def exact(x: Tensor, weight: Tensor, bias: Tensor) -> Results:
        return (F.layer_norm(x.double(), x.shape[-1:], weight.double(), bias.double(), _EPS),) * readers

    return Subject(
        (x, weight, bias),
        plain=plain,
        kernel=lambda x, w, b, tile=None: (layer_norm.launch(x, w, b, _EPS, _HALF, tile=tile),) * readers,
        reference=lambda x, w, b: (layer_norm.reference(x, w, b, _EPS, _HALF),) * readers,
        why_not=lambda x, w, b: layer_norm.why_not(x, w, b, _HALF),
        candidates=lambda x, w, b: layer_norm.candidates(x, w, b, _HALF),
        exact=exact,
        tolerance=layer_norm.TOLERANCES[_HALF],
        least_bytes=_size_bytes(x, x, weight, bias),
    )


def _geglu(shape: Shape, draw: Callable[..., Tensor]) -> Subject:
    x = draw(*shape.sizes)

    def plain(x: Tensor) -> Results:
        value, gate = x.chunk(2, dim=-1)
        return (value * F.gelu(gate),)

    return Subject(
        (x,),
        plain=plain,
        kernel=lambda x, tile=None: (geglu.launch(x, tile=tile),),
        reference=lambda x: (geglu.reference(x),),
        why_not=geglu.why_not,
        candidates=geglu.candidates,
        exact=lambda x: plain(x.double()),
        tolerance=geglu.TOLERANCES[_HALF],
        least_bytes=_size_bytes(x) * 3 // 2,
    )


def _linear_geglu(shape: Shape, draw: Callable[..., Tensor]) -> Subject:
    channels = shape.sizes[-1]
    x, weight, bias = draw(*shape.sizes), draw(8 * channels, channels) / channels**0.5, draw(8 * channels) / 5

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Results:
        value, gate = F.linear(x, weight, bias).chunk(2, dim=-1)
        return (value * F.gelu(gate),)

    return Subject(
        (x, weight, bias),
        plain=plain,
        kernel=lambda x, w, b, tile=None: (linear_geglu.launch(x, w, b, tile=tile),),
        reference=lambda x, w, b: (linear_geglu.reference(x, w, b),),
        why_not=linear_geglu.why_not,
        candidates=linear_geglu.candidates,
        exact=lambda x, w, b: plain(x.double(), w.double(), b.double()),
        tolerance=linear_geglu.TOLERANCES[_HALF],
        least_bytes=_size_bytes(*5 * (x,), weight, bias),
        flop=2.0 * x.numel() * len(weight),
    )


def _lora_fuse(shape: Shape, draw: Callable[..., Tensor]) -> Subject:
    height, width = shape.sizes
    inputs = []
    for _ in range(shape.layers):
        pairs = tuple((draw(height, RANK), draw(RANK, width) / RANK) for _ in range(shape.networks))
        inputs.append((draw(height, width), draw(height, width), pairs))

    def plain(*layers: Any) -> Results:
        for live, base, pairs in layers:
            write_sum(live, base, [Factors(up, down, 1.0) for up, down in pairs])
        return tuple(live for live, _, _ in layers)

    def exact(*layers: Any) -> Results:
        return tuple(
            sum((up.double() @ down.double() for up, down in pairs), base.double())
            for _, base, pairs in layers
        )

    def by(way: Callable[..., None]) -> Way:
        def run(*layers: Any, **tile: Any) -> Results:
            way(_layers(layers), **tile)
            return tuple(live for live, _, _ in layers)

        return run

    return Subject(
        tuple(inputs),
        plain=plain,
        kernel=by(lora_fuse.launch),
        reference=by(lora_fuse.reference),
        why_not=lambda *layers: lora_fuse.why_not(_layers(layers)),
        candidates=lambda *layers: lora_fuse.candidates(_layers(layers)),
        exact=exact,
        tolerance=lora_fuse.TOLERANCES[_HALF],
        least_bytes=_size_bytes(*inputs),
        is_replayed=False,
        written=tuple(live for live, _, _ in inputs),
    )


_SUBJECTS: Mapping[str, Callable[[Shape, Callable[..., Tensor]], Subject]] = MappingProxyType(
    {
        "group_norm": _group_norm,
        "group_norm_joined": _group_norm_joined,
        "layer_norm": _layer_norm,
        "geglu": _geglu,
        "bias_residual": _bias_residual,
        "linear_geglu": _linear_geglu,
        "lora_fuse": _lora_fuse,
    }
)


def _layers(layers: Any) -> list[Layer]:
    return [Layer(live, base, [Pair(up, down, 1.0) for up, down in pairs]) for live, base, pairs in layers]


def _normed(x: Tensor, weight: Tensor, bias: Tensor, use: _Use) -> Tensor:
    """As a block has it, up to what the convolution or linear layer behind it computes with."""
    normed = ops.group_norm(x, weight, bias, use.spec, _RULES)
    result: Tensor = cast(_RULES.matmul, F.silu(normed) if use.norm.silu else normed)[0]
    return result


def _shifted(x: Tensor, *shift: Tensor) -> Tensor:
    return x + shift[0].to(x.dtype)[:, :, None, None] if shift else x


def _exact_norm(x: Tensor, weight: Tensor, bias: Tensor, norm: Norm) -> Tensor:
    result = F.group_norm(x.double(), norm.groups, weight.double(), bias.double(), norm.eps)
    return F.silu(result) if norm.silu else result


def _laid(image: Tensor, shape: Shape) -> Tensor:
    return image.contiguous(memory_format=torch.channels_last if shape.is_last else torch.contiguous_format)


def _affine(draw: Callable[..., Tensor], channels: int) -> tuple[Tensor, Tensor]:
    return 1 + draw(channels) / 5, draw(channels) / 5


def _size_bytes(*values: Any) -> int:
    """Of tensors, and tuples of them."""
    return sum(
        value.numel() * value.element_size() if isinstance(value, Tensor) else _size_bytes(*value)
        for value in values
    )
