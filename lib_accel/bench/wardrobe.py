"""Kohya's LoRA files for a UNet, as many as wanted, and the sets that are changed for each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lib_accel.bench.sizes import changed_layers
from lib_accel.lora.original import original_names

RANK = 16
SHARE = 0.02  # size of one network's change against the weight's own
_POOL = 1 << 20


@dataclass(frozen=True)
class Source:
    """A network as it is handed over: a file, or tensors of one. Equal names, equal networks."""

    name: str
    given: Path | Mapping[str, Tensor] = field(compare=False, repr=False)

    def tensors(self) -> Mapping[str, Tensor]:
        """Its tensors by name, mapped where it is a file."""
        if isinstance(self.given, Path):
            found: Mapping[str, Tensor] = load_file(self.given)
            return found
        return self.given


@dataclass(frozen=True)
class Worn:
    """A network and how much of it is wanted."""

    source: Source
    scale: float = 1.0


class Wardrobe:
    """The files of a UNet's networks in a folder, and where each layer is in them."""

    def __init__(self, unet: nn.Module, folder: Path, most: int) -> None:
        layers = changed_layers(unet)
        self.stems = stems_of(unet)
        self.rank = RANK
        self._halves: dict[tuple[int, bool], Source] = {}
        self._sources = []
        for number in range(2 * most + 1):
            file = folder / f"style{number:03}.safetensors"
            save_file(self._network(layers, number), file)
            self._sources.append(Source(file.stem, file))
        self.file_bytes = self._sources[0].given.stat().st_size  # type: ignore[union-attr]

    def set(self, first: int, count: int) -> list[Worn]:
        """So many networks from a number on."""
        return [Worn(source) for source in self._sources[first : first + count]]

    def half(self, first: int, count: int, *, rest: bool) -> list[Worn]:
        """So many networks' tensors of the first half of the layers, or of the rest."""
        return [Worn(self._half(number, rest)) for number in range(first, first + count)]

    def _half(self, number: int, rest: bool) -> Source:
        if (number, rest) not in self._halves:
            stems = sorted(self.stems)
            wanted = set(stems[len(stems) // 2 :] if rest else stems[: len(stems) // 2])
            whole = self._sources[number]
            part = {key: value for key, value in whole.tensors().items() if key.partition(".")[0] in wanted}
            self._halves[number, rest] = Source(f"{whole.name}{'r' if rest else 'f'}", part)
        return self._halves[number, rest]

    def forget_halves(self) -> None:
        """Lets go of the tensors that halves hold."""
        self._halves.clear()

    def _network(self, layers: Mapping[str, nn.Module], number: int) -> dict[str, Tensor]:
        # One pool, read from another place by each network: drawing all anew would take minutes.
        pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(number)).half()
        tensors: dict[str, Tensor] = {}
        for stem, path in self.stems.items():
            weight = layers[path].weight
            assert isinstance(weight, Tensor)
            (outputs, inputs), ones = weight.shape[:2], [1] * (weight.ndim - 2)
            size = SHARE * 0.03 / RANK**0.5
            tensors[f"{stem}.lora_down.weight"] = _cut(pool, RANK, inputs, *ones)
            tensors[f"{stem}.lora_up.weight"] = _cut(pool.roll(len(tensors)), outputs, RANK, *ones) * size
            tensors[f"{stem}.alpha"] = torch.tensor(float(RANK))
        return tensors


def _cut(pool: Tensor, *shape: int) -> Tensor:
    return pool[: torch.Size(shape).numel()].reshape(shape).clone()


def stems_of(unet: nn.Module) -> dict[str, str]:
    """The paths of the layers that networks change, by kohya's names, which for SDXL are the original's."""
    paths = changed_layers(unet)
    everything = [path for path, _ in unet.named_modules()]
    is_xl = any(path.startswith("add_embedding.") for path in everything)
    original = {path: name for name, path in original_names(everything)} if is_xl else {}
    return {f"lora_unet_{original.get(path, path).replace('.', '_')}": path for path in paths}


def names(worn: Sequence[Worn]) -> list[str]:
    """The networks' names in their order."""
    return [each.source.name for each in worn]
