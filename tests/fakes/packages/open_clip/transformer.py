"""Tokens come first, (tokens, batch, channels); queries, keys and values are one packed projection."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn


class LayerNorm(nn.LayerNorm):
    """Returns the dtype it is given."""

    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).to(x.dtype)


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class LayerScale(nn.Module):
    def __init__(self, dim, init_values=1e-5):
        super().__init__()
        self.gamma = nn.Parameter(init_values * torch.ones(dim))

    def forward(self, x):
        return x * self.gamma


class ResidualAttentionBlock(nn.Module):
    def __init__(
        self, d_model, n_head, mlp_ratio=4.0, ls_init_value=None, act_layer=nn.GELU, norm_layer=LayerNorm
    ):
        super().__init__()
        inner = int(d_model * mlp_ratio)
        self.ln_1 = norm_layer(d_model)
        self.attn = nn.MultiheadAttention(d_model, n_head)
        self.ls_1 = nn.Identity() if ls_init_value is None else LayerScale(d_model, ls_init_value)
        self.ln_2 = norm_layer(d_model)
        layers = {"c_fc": nn.Linear(d_model, inner), "gelu": act_layer(), "c_proj": nn.Linear(inner, d_model)}
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.ls_2 = nn.Identity() if ls_init_value is None else LayerScale(d_model, ls_init_value)

    def attention(self, q_x, k_x=None, v_x=None, attn_mask=None):
        k_x, v_x = (q_x if each is None else each for each in (k_x, v_x))
        mask = None if attn_mask is None else attn_mask.to(q_x.dtype)
        return self.attn(q_x, k_x, v_x, need_weights=False, attn_mask=mask)[0]

    def forward(self, q_x, k_x=None, v_x=None, attn_mask=None):
        x = q_x + self.ls_1(self.attention(q_x=self.ln_1(q_x), k_x=k_x, v_x=v_x, attn_mask=attn_mask))
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    def __init__(self, width, layers, heads, **options):
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(width, heads, **options) for _ in range(layers))

    def forward(self, x, attn_mask=None):
        for block in self.resblocks:
            x = block(x, attn_mask=attn_mask)
        return x
