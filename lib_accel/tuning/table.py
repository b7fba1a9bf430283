"""All operators by name that contests are held of: those of blocks, and that which merges LoRAs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from lib_accel.blocks.operators import table
from lib_accel.blocks.operators.operator import Operator
from lib_accel.lora.merge import MERGE

OPERATORS: Mapping[str, Operator] = MappingProxyType({**table.OPERATORS, MERGE.name: MERGE})
