"""UNet, residual blocks and the container that hands each block what it takes."""

from abc import abstractmethod

import torch as th
import torch.nn.functional as F
from torch import nn

from sgm.modules.attention import SpatialTransformer
from sgm.modules.diffusionmodules.util import GroupNorm32, checkpoint, timestep_embedding


class TimestepBlock(nn.Module):
    @abstractmethod
    def forward(self, x, emb):
        """Applies the block."""


class TimestepEmbedSequential(nn.Sequential, TimestepBlock):
    def forward(
        self,
        x,
        emb,
        context=None,
        skip_time_mix=False,
        time_context=None,
        num_video_frames=None,
        time_context_cat=None,
        use_crossframe_attention_in_spatial_layers=False,
    ):
        for layer in self:
            if isinstance(layer, TimestepBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class Upsample(nn.Module):
    def __init__(self, channels, use_conv, dims=2, out_channels=None, padding=1, third_up=False):
        super().__init__()
        self.channels, self.use_conv, self.dims, self.third_up = channels, use_conv, dims, third_up
        self.out_channels = out_channels or channels
        self.conv = nn.Conv2d(channels, self.out_channels, 3, padding=padding)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Downsample(nn.Module):
    def __init__(self, channels, use_conv, dims=2, out_channels=None, padding=1, third_down=False):
        super().__init__()
        self.channels, self.use_conv, self.dims = channels, use_conv, dims
        self.out_channels = out_channels or channels
        self.op = nn.Conv2d(channels, self.out_channels, 3, stride=2, padding=padding)

    def forward(self, x):
        return self.op(x)


class ResBlock(TimestepBlock):
    def __init__(self, channels, emb_channels, dropout, out_channels=None):
        super().__init__()
        self.channels, self.out_channels = channels, out_channels or channels
        self.use_checkpoint = self.use_scale_shift_norm = self.updown = False
        self.exchange_temb_dims = self.skip_t_emb = False
        out = self.out_channels
        self.in_layers = nn.Sequential(
            GroupNorm32(32, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1)
        )
        self.h_upd = self.x_upd = nn.Identity()
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out))
        self.out_layers = nn.Sequential(
            GroupNorm32(32, out), nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(out, out, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if out == channels else nn.Conv2d(channels, out, 1)

    def forward(self, x, emb):
        return checkpoint(self._forward, (x, emb), self.parameters(), self.use_checkpoint)

    def _forward(self, x, emb):
        h = self.in_layers(x)
        h = h + self.emb_layers(emb).type(h.dtype)[..., None, None]
        return self.skip_connection(x) + self.out_layers(h)


class UNetModel(nn.Module):
    """Two levels with one residual block each; the lower one and the middle have a transformer."""

    def __init__(
        self,
        in_channels,
        model_channels,
        out_channels,
        num_heads,
        context_dim,
        transformer_depth=1,
        num_classes=None,
        adm_in_channels=None,
        use_linear_in_transformer=False,
    ):
        super().__init__()
        self.in_channels, self.model_channels, self.out_channels = in_channels, model_channels, out_channels
        self.num_classes, self.predict_codebook_ids = num_classes, False
        low, high, emb = model_channels, 2 * model_channels, 4 * model_channels
        self.time_embed = _embedding(low, emb)
        if num_classes is not None:
            assert num_classes == "sequential"
            self.label_emb = nn.Sequential(_embedding(adm_in_channels, emb))

        def transformer():
            return SpatialTransformer(
                high,
                num_heads,
                high // num_heads,
                depth=transformer_depth,
                context_dim=context_dim,
                use_linear=use_linear_in_transformer,
            )

        def blocks(*contents):
            return nn.ModuleList(TimestepEmbedSequential(*content) for content in contents)

        self.input_blocks = blocks(
            [nn.Conv2d(in_channels, low, 3, padding=1)],
            [ResBlock(low, emb, 0.0)],
            [Downsample(low, True)],
            [ResBlock(low, emb, 0.0, high), transformer()],
        )
        self.middle_block = TimestepEmbedSequential(
            ResBlock(high, emb, 0.0), transformer(), ResBlock(high, emb, 0.0)
        )
        self.output_blocks = blocks(
            [ResBlock(high + high, emb, 0.0, high), transformer()],
            [ResBlock(high + low, emb, 0.0, high), transformer(), Upsample(high, True)],
            [ResBlock(high + low, emb, 0.0, low)],
            [ResBlock(low + low, emb, 0.0, low)],
        )
        self.out = nn.Sequential(GroupNorm32(32, low), nn.SiLU(), nn.Conv2d(low, out_channels, 3, padding=1))

    def forward(self, x, timesteps=None, context=None, y=None, **kwargs):
        assert (y is not None) == (self.num_classes is not None)
        hs = []
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels, repeat_only=False))
        if self.num_classes is not None:
            assert y.shape[0] == x.shape[0]
            emb = emb + self.label_emb(y)
        h = x
        for module in self.input_blocks:
            h = module(h, emb, context)
            hs.append(h)
        h = self.middle_block(h, emb, context)
        for module in self.output_blocks:
            h = module(th.cat([h, hs.pop()], dim=1), emb, context)
        return self.out(h.type(x.dtype))


def _embedding(channels, out):
    return nn.Sequential(nn.Linear(channels, out), nn.SiLU(), nn.Linear(out, out))
