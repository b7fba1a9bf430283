"""What of a model family we stand in front of: classes whose `forward` we take over while we are attached.

A unit computes something with our functions. A model only marks where one call of a model begins and ends,
so that what is looked up once a call is looked up once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from lib_accel.layouts.compvis import Family
from lib_accel.layouts.reading import Candidate, Trust


class Inputs(NamedTuple):
    """What the blocks of a unit compute with: the image or tokens, and what else each kind takes."""

    x: Tensor
    emb: Any = None
    context: Any = None
    skip: Tensor | None = None  # another image, which the unit is to join to x along the channels

    @property
    def size_bytes(self) -> int:
        """Of what is computed with as images or tokens."""
        return self.x.nbytes + (0 if self.skip is None else self.skip.nbytes)


def _always(module: nn.Module) -> bool:
    return True


def _as_it_is(module: nn.Module, result: Tensor, kwargs: Mapping[str, Any]) -> Any:
    return result


class Unit(NamedTuple):
    """A class whose instances are one or more blocks."""

    path: str  # module and name of the class
    candidates: Callable[[nn.Module, Trust], list[Candidate]]  # raises LayoutError
    inputs: Callable[..., Inputs]  # of forward's arguments; raises LayoutError for what we do not know
    output: Callable[[nn.Module, Tensor, Mapping[str, Any]], Any] = _as_it_is  # in the form that is asked for
    applies: Callable[[nn.Module], bool] = _always  # whether this instance is a block of ours


class UNet(NamedTuple):
    """A UNetModel of the CompVis code line, whose own layers we run too."""

    path: str
    names: Family


class Arguments(NamedTuple):
    """What a model is called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Model(NamedTuple):
    """A class of models whose own loop calls the units."""

    path: str
    denoises: bool = False  # a UNet or control model: its calls are counted
    begins_pictures: bool = False  # a text encoder, which comes before the steps
    # Arguments of the same meaning that differ from call to call in their tensors only, all on the device of
    # the first; None where calls are not replayed as a whole.
    as_tensors: Callable[[Arguments], Arguments] | None = None


Entry = Unit | UNet | Model
