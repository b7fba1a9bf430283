"""The spatial transformer; all its depths share one context, unlike `ldm`'s."""

import torch.nn.functional as F
from torch import nn

from sgm.modules.diffusionmodules.util import checkpoint


class GEGLU(nn.Module):
    def __init__(self, dim_in, dim_out):
        super().__init__()
        self.proj = nn.Linear(dim_in, dim_out * 2)

    def forward(self, x):
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Dropout(0.0), nn.Linear(4 * dim, dim))

    def forward(self, x):
        return self.net(x)


class CrossAttention(nn.Module):
    def __init__(self, query_dim, context_dim=None, heads=8, dim_head=64, dropout=0.0, backend=None):
        super().__init__()
        inner = heads * dim_head
        self.scale, self.heads, self.backend = dim_head**-0.5, heads, backend
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim or query_dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim or query_dim, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, query_dim), nn.Dropout(dropout))

    def forward(self, x, context=None, mask=None, additional_tokens=None, n_times_crossframe_attn_in_self=0):
        source = x if context is None else context
        q, k, v = (
            layer(given).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, given in ((self.to_q, x), (self.to_k, source), (self.to_v, source))
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class MemoryEfficientCrossAttention(CrossAttention):
    pass


class BasicTransformerBlock(nn.Module):
    def __init__(self, dim, n_heads, d_head, context_dim=None, disable_self_attn=False, checkpoint=False):
        super().__init__()
        self.disable_self_attn, self.checkpoint = disable_self_attn, checkpoint
        self.attn1 = CrossAttention(dim, context_dim if disable_self_attn else None, n_heads, d_head)
        self.ff = FeedForward(dim)
        self.attn2 = CrossAttention(dim, context_dim, n_heads, d_head)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))

    def forward(self, x, context=None, additional_tokens=None, n_times_crossframe_attn_in_self=0):
        return checkpoint(self._forward, (x, context), self.parameters(), self.checkpoint)

    def _forward(self, x, context=None, additional_tokens=None, n_times_crossframe_attn_in_self=0):
        x = self.attn1(self.norm1(x), context=context if self.disable_self_attn else None) + x
        x = self.attn2(self.norm2(x), context=context) + x
        return self.ff(self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    def __init__(self, in_channels, n_heads, d_head, depth=1, context_dim=None, use_linear=False):
        super().__init__()
        self.in_channels, self.use_linear = in_channels, use_linear
        inner = n_heads * d_head
        self.norm = nn.GroupNorm(32, in_channels, eps=1e-6)
        self.proj_in = nn.Linear(in_channels, inner) if use_linear else nn.Conv2d(in_channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner, n_heads, d_head, context_dim) for _ in range(depth)
        )
        self.proj_out = nn.Linear(inner, in_channels) if use_linear else nn.Conv2d(inner, in_channels, 1)

    def forward(self, x, context=None):
        contexts = context if isinstance(context, list) else [context]
        entered, size = x, x.shape[2:]
        x = self.norm(x)
        x = self.proj_in(x.flatten(2).transpose(1, 2)) if self.use_linear else self._tokens(self.proj_in(x))
        for depth, block in enumerate(self.transformer_blocks):
            x = block(x, context=contexts[depth if len(contexts) > 1 else 0])
        if self.use_linear:
            return self.proj_out(x).transpose(1, 2).unflatten(2, size) + entered
        return self.proj_out(x.transpose(1, 2).unflatten(2, size)) + entered

    @staticmethod
    def _tokens(x):
        return x.flatten(2).transpose(1, 2)
