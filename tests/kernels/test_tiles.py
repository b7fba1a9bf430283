"""Each kernel is launched with the tile that is asked for, and else with the first of its candidates."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from lib_accel.kernels import bias_residual, geglu, group_norm, layer_norm, linear_geglu, lora_fuse
from lib_accel.kernels.group_norm import Norm
from lib_accel.kernels.lora_fuse import Layer, Pair

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="requirements-dev.txt has Triton for Linux only"
)

HALF = torch.float16
NORM = Norm(2, 1e-5, HALF)
IMAGE, TOKENS = torch.zeros(1, 4, 48, 48, dtype=HALF), torch.zeros(3, 640, dtype=HALF)
LAYERS = [Layer(TOKENS, TOKENS, [Pair(torch.zeros(3, 4).half(), torch.zeros(4, 640).half(), 1.0)])]


class Operation(NamedTuple):
    """An operation, and arguments of which `candidates` and `launch` take one each."""

    module: Any
    args: tuple[Any, ...]
    rest: tuple[Any, ...] = ()  # of `launch` alone, before the last of args


OPERATIONS = [
    Operation(group_norm, (IMAGE, None, None, NORM, torch.zeros(1, 4))),
    Operation(layer_norm, (TOKENS, None, None, HALF), rest=(1e-5,)),
    Operation(geglu, (TOKENS,)),
    Operation(bias_residual, (IMAGE, torch.zeros(4), IMAGE)),
    Operation(linear_geglu, (TOKENS, torch.zeros(32, 640, dtype=HALF), None)),
    Operation(lora_fuse, (LAYERS,)),
]


class Programs:
    """Stands for a module of programs: notes what its kernels are launched with."""

    def __init__(self) -> None:
        self.launched: list[dict[str, Any]] = []

    def __getattr__(self, name: str) -> Programs:
        return self

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert grid[0] > 0
        return lambda *_, **named: self.launched.append(named)


def launched(operation: Operation, tile: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    programs = Programs()
    monkeypatch.setattr(operation.module, "programs", lambda name: programs)
    operation.module.launch(*operation.args[:-1], *operation.rest, operation.args[-1], tile=tile)
    return programs.launched


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.module.__name__.rsplit(".")[-1])
def test_a_launch_has_the_sizes_of_its_tile(operation: Operation, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = operation.module.candidates(*operation.args)
    assert len(tiles) > 1
    for tile in tiles:
        sizes = {value for name, value in tile._asdict().items() if name not in ("warps", "per_chunk")}
        assert any(
            sizes <= {*named.values()} and named["num_warps"] == tile.warps
            for named in launched(operation, tile, monkeypatch)
        )


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.module.__name__.rsplit(".")[-1])
def test_the_first_candidate_is_taken_where_none_is_asked_for(
    operation: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = operation.module.candidates(*operation.args)
    own = launched(operation, first, monkeypatch)
    assert launched(operation, None, monkeypatch) == own
    assert all(launched(operation, other, monkeypatch) != own for other in others)
