"""What is kept on a GPU beside the models, and what in the CPU's memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lib_accel.lora.network import Layer

_MIB = 2**20
_LEAST_LEFT = 4 * 2**30  # bytes of a GPU's memory that pictures of one megapixel may need

Memory = Callable[[torch.device], tuple[int, int]]  # how many bytes of a GPU are free, and how many it has


def leaves_enough(needed: int, free: int, total: int) -> bool:
    """Whether a GPU with so many bytes free, of a total, has room for copies beside what pictures take."""
    return free - needed >= max(_LEAST_LEFT, total // 4)


def copier(
    device: torch.device, needed: int, memory: Memory = torch.cuda.mem_get_info
) -> Callable[[Tensor], Tensor]:
    """What copies weights of a device, of `needed` bytes together, to where their copies are to stay."""
    if device.type != "cuda":
        return _to_cpu
    return torch.clone if leaves_enough(needed, *memory(device)) else to_pinned


def _to_cpu(weight: Tensor) -> Tensor:
    return weight.to("cpu", copy=True)


def to_pinned(weight: Tensor) -> Tensor:
    """In memory that a GPU reads at full speed; in any other if the system has no more of it to give."""
    try:
        return torch.empty_like(weight, device="cpu", pin_memory=True).copy_(weight)
    except RuntimeError:
        return _to_cpu(weight)


class Uploads:
    """The tensors of networks on the device of the weights, where those that were used last stay.

    A network has hundreds of small tensors, and a GPU is waited for with each that it is sent. On the CPU
    they are used as they are, mapped from their file: converting them ahead saves 3 % of a switch there.
    """

    def __init__(self, limit_mib: int = 512, memory: Memory = torch.cuda.mem_get_info) -> None:
        """`limit_mib`: how much may stay on GPUs."""
        self._limit, self._memory = limit_mib * _MIB, memory
        self._kept: OrderedDict[tuple[torch.device, Layer], Mapping[str, Tensor]] = OrderedDict()
        self.kept_bytes = 0

    def on(self, device: torch.device, layer: Layer) -> Mapping[str, Tensor]:
        """The tensors of a layer there, by their roles."""
        if (device, layer) in self._kept:
            self._kept.move_to_end((device, layer))
            return self._kept[device, layer]
        tensors = {role: tensor.to(device) for role, tensor in layer.tensors.items()}
        if device.type == "cpu" or all(tensor.device == device for tensor in layer.tensors.values()):
            return tensors
        size = _bytes(tensors)
        if leaves_enough(size, *self._memory(device)):
            self._kept[device, layer] = tensors
            self.kept_bytes += size
        while self.kept_bytes > self._limit:
            self.kept_bytes -= _bytes(self._kept.popitem(last=False)[1])
        return tensors

    def clear(self) -> None:
        """Keeps none."""
        self._kept.clear()
        self.kept_bytes = 0


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
