"""Norm, timestep embedding and the indirection that every block's forward goes through."""

import math

import torch
from torch import nn


class GroupNorm32(nn.GroupNorm):
    """Computes in float32, returns the input's dtype."""

    def forward(self, x):
        return super().forward(x.float()).type(x.dtype)


def checkpoint(func, inputs, params, flag):
    assert not flag
    return func(*inputs)


def timestep_embedding(timesteps, dim, max_period=10000, repeat_only=False):
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32)
    angles = timesteps[:, None].float() * torch.exp(-math.log(max_period) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
