"""Encoder and decoder of the VAE; unlike in `ldm`, attention is a method and options are handed on."""

import torch
import torch.nn.functional as F
from torch import nn


def nonlinearity(x):
    return x * torch.sigmoid(x)


def _norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


def _conv(channels, out, size, **options):
    return nn.Conv2d(channels, out, size, **options)


class Upsample(nn.Module):
    def __init__(self, in_channels, with_conv):
        super().__init__()
        self.with_conv = with_conv
        self.conv = _conv(in_channels, in_channels, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Downsample(nn.Module):
    def __init__(self, in_channels, with_conv):
        super().__init__()
        self.with_conv = with_conv
        self.conv = _conv(in_channels, in_channels, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class ResnetBlock(nn.Module):
    def __init__(self, *, in_channels, out_channels, dropout=0.0, conv_shortcut=False):
        super().__init__()
        self.in_channels, self.out_channels, self.use_conv_shortcut = in_channels, out_channels, conv_shortcut
        self.norm1, self.norm2 = _norm(in_channels), _norm(out_channels)
        self.conv1 = _conv(in_channels, out_channels, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _conv(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = _conv(in_channels, out_channels, 1)

    def forward(self, x, temb):
        h = self.conv1(nonlinearity(self.norm1(x)))
        h = self.conv2(self.dropout(nonlinearity(self.norm2(h))))
        return (x if self.in_channels == self.out_channels else self.nin_shortcut(x)) + h


class AttnBlock(nn.Module):
    def __init__(self, in_channels):
        super().__init__()
        self.in_channels, self.norm = in_channels, _norm(in_channels)
        self.q, self.k, self.v, self.proj_out = (_conv(in_channels, in_channels, 1) for _ in range(4))

    def attention(self, h_):
        h_ = self.norm(h_)
        tokens = (layer(h_).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(*(each.contiguous() for each in tokens))
        return mixed[:, 0].transpose(1, 2).unflatten(2, h_.shape[2:])

    def forward(self, x, **kwargs):
        return x + self.proj_out(self.attention(x))


class _Chain(nn.Module):
    def _middle(self, channels):
        self.mid = nn.Module()
        self.mid.block_1 = ResnetBlock(in_channels=channels, out_channels=channels)
        self.mid.attn_1 = AttnBlock(channels)
        self.mid.block_2 = ResnetBlock(in_channels=channels, out_channels=channels)

    def _level(self, channels, out, count):
        level = nn.Module()
        level.attn = nn.ModuleList()
        level.block = nn.ModuleList(
            ResnetBlock(in_channels=out if index else channels, out_channels=out) for index in range(count)
        )
        return level

    def _run_level(self, level, h):
        for block in level.block:
            h = block(h, None)
        return h

    def _run_middle(self, h):
        return self.mid.block_2(self.mid.attn_1(self.mid.block_1(h, None)), None)

    def _run_end(self, h):
        return self.conv_out(nonlinearity(self.norm_out(h)))


class Encoder(_Chain):
    def __init__(self, *, ch, ch_mult, num_res_blocks, in_channels, z_channels, **ignored):
        super().__init__()
        self.num_resolutions, self.num_res_blocks = len(ch_mult), num_res_blocks
        self.conv_in, self.down, channels = _conv(in_channels, ch, 3, padding=1), nn.ModuleList(), ch
        for index, multiple in enumerate(ch_mult):
            level, channels = self._level(channels, ch * multiple, num_res_blocks), ch * multiple
            if index != len(ch_mult) - 1:
                level.downsample = Downsample(channels, True)
            self.down.append(level)
        self._middle(channels)
        self.norm_out, self.conv_out = _norm(channels), _conv(channels, 2 * z_channels, 3, padding=1)

    def forward(self, x):
        h = self.conv_in(x)
        for index, level in enumerate(self.down):
            h = self._run_level(level, h)
            if index != self.num_resolutions - 1:
                h = level.downsample(h)
        return self._run_end(self._run_middle(h))


class Decoder(_Chain):
    def __init__(self, *, ch, out_ch, ch_mult, num_res_blocks, z_channels, **ignored):
        super().__init__()
        self.num_resolutions, self.num_res_blocks = len(ch_mult), num_res_blocks
        self.give_pre_end, self.tanh_out = ignored.get("give_pre_end", False), ignored.get("tanh_out", False)
        channels = ch * ch_mult[-1]
        self.conv_in, self.up = _conv(z_channels, channels, 3, padding=1), nn.ModuleList()
        self._middle(channels)
        for index in reversed(range(len(ch_mult))):
            level = self._level(channels, ch * ch_mult[index], num_res_blocks + 1)
            channels = ch * ch_mult[index]
            if index:
                level.upsample = Upsample(channels, True)
            self.up.insert(0, level)
        self.norm_out, self.conv_out = _norm(channels), _conv(channels, out_ch, 3, padding=1)

    def forward(self, z, **kwargs):
        self.last_z_shape = z.shape
        h = self._run_middle(self.conv_in(z))
        for index in reversed(range(self.num_resolutions)):
            h = self._run_level(self.up[index], h)
            if index:
                h = self.up[index].upsample(h)
        return self._run_end(h)
