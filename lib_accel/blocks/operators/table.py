"""All operators by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from lib_accel.blocks.operators.attention import ATTENTION
from lib_accel.blocks.operators.convolution_add import CONVOLUTION_ADD
from lib_accel.blocks.operators.convolution_norm import CONVOLUTION_NORM
from lib_accel.blocks.operators.gated_linear import GATED_LINEAR
from lib_accel.blocks.operators.group_norm import GROUP_NORM
from lib_accel.blocks.operators.joined_norm import JOINED_NORM
from lib_accel.blocks.operators.layer_norm import LAYER_NORM
from lib_accel.blocks.operators.layout import RESIDUAL_LAYOUT
from lib_accel.blocks.operators.linear_add import LINEAR_ADD
from lib_accel.blocks.operators.operator import Operator
from lib_accel.blocks.operators.projections import PROJECTIONS

OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        operator.name: operator
        for operator in (
            ATTENTION,
            CONVOLUTION_ADD,
            CONVOLUTION_NORM,
            GATED_LINEAR,
            GROUP_NORM,
            JOINED_NORM,
            LAYER_NORM,
            LINEAR_ADD,
            PROJECTIONS,
            RESIDUAL_LAYOUT,
        )
    }
)
