"""One linear layer whose weight is stored, and what it was loaded as."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lib_accel.lora.memory import to_pinned
from lib_accel.storage.formats import Format
from lib_accel.storage.tensor import StoredWeight

_serials = itertools.count()


class StoredLayer:
    """Holds the layer weakly, and the Parameter that it was loaded with: that one waits in the CPU's memory.

    The Parameter comes back as the same object. On the CPU it stays as it is.
    """

    def __init__(self, module: nn.Linear, name: str) -> None:
        """name: for messages."""
        self._module, self.name = weakref.ref(module), name
        self.original: nn.Parameter = module.get_parameter("weight")
        self.serial = next(_serials)
        self.kind: Format | None = None

    def now(self) -> StoredWeight | None:
        """The stored weight, which moves replace; None if there is none, or others put another there."""
        module = self._module()
        weight = None if module is None else module._parameters.get("weight")
        if not isinstance(weight, StoredWeight) or weight.serial != self.serial or weight.is_meta:
            return None
        return weight

    def as_loaded(self) -> nn.Module | None:
        """Something with the layer's parameters, where its weight is what was loaded; None if not stored."""
        module = self._module()
        if module is None or self.now() is None:
            return None
        holder = nn.Module()
        holder._parameters = {**module._parameters, "weight": self.original}
        return holder

    @property
    def stored_bytes(self) -> int:
        """Memory of the stored weight; 0 if there is none."""
        now = self.now()
        return 0 if now is None else now.stored_bytes

    def become(self, kind: Format | None) -> None:
        """Stores the weight so, or if that is None puts back what was loaded, where the weight is by now.

        Does nothing if others replaced the stored weight.
        """
        now, module = self.now(), self._module()
        if kind is self.kind or module is None or (self.kind is not None and now is None):
            return
        if kind is None:
            assert now is not None
            # If the model was told another dtype since, it is cast as it would have been then.
            _put(self.original, self.original.detach().to(now.device, now.dtype))
            module._parameters["weight"] = self.original
        elif now is None:
            stored = self._stored(self.original, kind)
            if self.original.device.type != "cpu":
                _put(self.original, to_pinned(self.original.detach()))
            module._parameters["weight"] = stored
        else:
            module._parameters["weight"] = self._stored(now, kind)
        self.kind = kind

    def _stored(self, like: Tensor, kind: Format) -> nn.Parameter:
        """What was loaded, stored on the device of `like` and in its dtype."""
        with torch.inference_mode(self.original.is_inference()), torch.no_grad():
            full = self.original.detach().to(like.device)
            return nn.Parameter(StoredWeight.of(full, kind, like.dtype, self.serial), requires_grad=False)

    def write(self, fill: Callable[[Tensor], None]) -> None:
        """Stores other values in the memory of the stored weight.

        fill: writes them to a matrix of the dtype that was loaded, on the weight's device.
        """
        now = self.now()
        assert now is not None  # it was asked
        assert self.kind is not None
        with torch.inference_mode(now.codes.is_inference()), torch.no_grad():
            full = torch.empty(now.shape, dtype=self.original.dtype, device=now.device)
            fill(full)
            now.replace(full, self.kind)


def _put(parameter: nn.Parameter, values: Tensor) -> None:
    """Gives a Parameter other memory, as a move does."""
    with torch.inference_mode(parameter.is_inference()), torch.no_grad():
        parameter.data = values
