"""How other extensions of the webui reach into a picture: each of their ways to patch, in our own words.

Found by reading the sources of the extensions that are named. `Studio` is what they reach into: as much of
the webui as they take hold of.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from ldm.modules.diffusionmodules import openaimodel as ldm_openaimodel
from ldm.modules.diffusionmodules import util as ldm_util
from torch import Tensor, nn

from tests.fakes.host import FakeHost
from tests.fakes.lora import FakeLora, name_layers, random_network
from tests.fakes.models import CONTEXT_WIDTH, tiny_unet
from tests.fakes.vae import tiny_decoder
from tests.test_equality import ResizingTorch

STEPS = 3
UNET, DECODER = 19, 10  # blocks of the tiny models; a UNet's own layers count as one
PICTURE = STEPS * UNET + DECODER

Undo = Callable[[], object]


class Studio:
    """Draws with a UNet that carries a LoRA and with a VAE's decoder; others take part where they may."""

    def __init__(self) -> None:
        self.unet: Any = tiny_unet()
        self.decoder: Any = tiny_decoder()
        self.lora = FakeLora()
        self.host = FakeHost(self.lora)
        self.denoiser: Any = _Denoiser(self)
        self.step = 0
        self.before_step: list[Callable[[], None]] = []  # on_cfg_denoiser
        self.after_step: list[
            Callable[[Tensor, Tensor], Tensor]
        ] = []  # on_cfg_denoised, of latents and noise
        self.after_picture: list[Callable[[Tensor], Tensor]] = []  # postprocess_image
        name_layers(self.unet)
        self.load_networks()

    @classmethod
    @contextlib.contextmanager
    def opened(cls) -> Iterator[Studio]:
        """With the Lora extension's forwards and the webui's `th` in place."""
        studio, before = cls(), ldm_openaimodel.th
        ldm_openaimodel.th = ResizingTorch()
        try:
            with studio.lora.installed():
                yield studio
        finally:
            ldm_openaimodel.th = before

    def load_networks(self) -> None:
        """Reads the LoRA of the prompt anew, as the webui does for each picture."""
        self.lora.loaded_networks[:] = [random_network(self.unet, "style", seed=7, strength=0.3)]

    def apply_model(self, x: Tensor, context: Tensor) -> Tensor:
        """LatentDiffusion.apply_model: the UNet, which knows the step by its timesteps."""
        timesteps: Tensor = torch.full((len(x),), 900.0 - 300.0 * self.step)
        return self.unet(x, timesteps, context)

    def picture(self, latents: Tensor | None = None) -> Tensor:
        """A batch of two pictures, sampled from noise or from these latents."""
        x = _noise(2, 4, 8, 8) if latents is None else latents
        context = _noise(2, 154, CONTEXT_WIDTH).repeat_interleave(len(x), dim=0)
        with torch.no_grad():
            for self.step in range(STEPS):
                for call in self.before_step:
                    call()
                wanted, unwanted = self.denoiser(torch.cat([x, x]), context).chunk(2)
                noise = unwanted + 2 * (wanted - unwanted)
                for change in self.after_step:
                    noise = change(x, noise)
                x = x - 0.2 * noise
            image: Tensor = self.decoder(x)
            for finish in self.after_picture:
                image = finish(image)
        return image


class _Denoiser(nn.Module):
    """model_wrap_cfg.inner_model: what a sampler calls, and samplers of extensions replace."""

    def __init__(self, studio: Studio) -> None:
        super().__init__()
        self.__dict__["studio"] = studio

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.studio.apply_model(x, context)


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


# sd-webui-freeu


def freeu(studio: Studio) -> Undo:
    """`cat` of the module's `th`, switched off by a flag; it writes into what the block before returned."""
    th, settings = ldm_openaimodel.th, {"on": True}

    def cat(tensors: Any, *args: Any, original_function: Any, **kwargs: Any) -> Tensor:
        if settings["on"]:
            h, skip = tensors
            h[:, : h.shape[1] // 2] *= 1.3
            spectrum = torch.fft.fftn(skip, dim=(-2, -1))
            spectrum[..., :1, :1] *= 0.6
            tensors = h, torch.fft.ifftn(spectrum, dim=(-2, -1)).real
        return original_function(tensors, *args, **kwargs)

    th.cat = functools.partial(cat, original_function=th.cat)
    return lambda: settings.update(on=False)


# sd-webui-lora-block-weight


def lora_block_weight(studio: Studio) -> Undo:
    """Scales the factors of the networks that were read, block by block, and renames these."""
    for network in studio.lora.loaded_networks:
        for name, delta in network.modules.items():
            delta.up = delta.up * (0.1 if "input_blocks" in name else 1.6)
        network.name += "_in_LBW_0.123"
    return studio.load_networks


def lora_block_weight_of_steps(studio: Studio) -> Undo:
    """start=, stop=: the strength is another from some step on."""

    def set_strength() -> None:
        for network in studio.lora.loaded_networks:
            network.te_multiplier = network.unet_multiplier = 0.9 if studio.step == 1 else 0.0

    studio.before_step.append(set_strength)
    return lambda: (studio.before_step.remove(set_strength), studio.load_networks())


# sd-webui-regional-prompter


def regional_prompter(studio: Studio) -> Undo:
    """Attention mode: a closure as the forward of each cross-attention, deleted when it goes."""
    layers = [
        module
        for name, module in studio.unet.named_modules()
        if "attn2" in name and type(module).__name__ == "CrossAttention"
    ]
    for layer in layers:
        layer.forward = _of_regions(layer)
    return lambda: [delattr(layer, "forward") for layer in layers]


def _of_regions(layer: Any) -> Callable[..., Tensor]:
    def forward(x: Tensor, context: Any = None, mask: Any = None) -> Tensor:
        left, right = (_attended(layer, x, chunk)[0] for chunk in context.chunk(2, dim=1))
        half = x.shape[1] // 2
        return torch.cat([left[:, :half], right[:, half:]], dim=1)

    return forward


def _attended(layer: Any, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """The output of an attention computed by hand, and its probabilities."""
    projected = ((layer.to_q, x), (layer.to_k, source), (layer.to_v, source))
    q, k, v = (part(given).unflatten(-1, (layer.heads, -1)).transpose(1, 2) for part, given in projected)
    chances = (q @ k.transpose(-1, -2) * layer.scale).softmax(dim=-1)
    return layer.to_out((chances @ v).transpose(1, 2).flatten(2)), chances


def regional_prompter_of_latents(studio: Studio) -> Undo:
    """Latent mode: Linear.forward, which gives LoRAs another strength at the UNet's first layer."""
    inner: Any = nn.Linear.forward

    def forward(layer: Any, given: Tensor) -> Tensor:
        if getattr(layer, "network_layer_name", None) == "diffusion_model_time_embed_0":
            for network in studio.lora.loaded_networks:
                network.unet_multiplier = (0.8, -0.3, 0.1)[studio.step]
        return inner(layer, given)

    nn.Linear.forward = forward
    return lambda: (setattr(nn.Linear, "forward", inner), studio.load_networks())


# multidiffusion-upscaler-for-automatic1111


def tiled_diffusion(studio: Studio) -> Undo:
    """MultiDiffusion: the forward of the sampler's inner model, which then is called tile by tile."""
    inner = studio.denoiser.forward
    studio.denoiser.forward = lambda x, context: _in_tiles(lambda tile: inner(tile, context), x)
    return lambda: setattr(studio.denoiser, "forward", inner)


def mixture_of_diffusers(studio: Studio) -> Undo:
    """The checkpoint's `apply_model`, which keeps the original under another name."""
    inner = studio.apply_model
    studio.__dict__["apply_model"] = lambda x, context: _in_tiles(lambda tile: inner(tile, context), x)
    return lambda: setattr(studio, "apply_model", inner)


def _in_tiles(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Two tiles that overlap; where they do, the mean."""
    total, weight = torch.zeros_like(x), torch.zeros_like(x)
    for columns in (slice(0, 5), slice(3, 8)):
        total[..., columns] += call(x[..., columns])
        weight[..., columns] += 1
    return total / weight


class TiledVae:
    """An object as the decoder's forward, that calls the leaves of its blocks, tile by tile."""

    def __init__(self, net: Any) -> None:
        self.net = net

    def __call__(self, z: Tensor) -> Tensor:
        return torch.cat([self._tile(half) for half in z.chunk(2, dim=-1)], dim=-1)

    def _tile(self, x: Tensor) -> Tensor:
        net = self.net
        x = self._residual(net.mid.block_1, net.conv_in(x))
        x = self._residual(net.mid.block_2, net.mid.attn_1(x))
        for level in reversed(range(net.num_resolutions)):
            for block in net.up[level].block:
                x = self._residual(block, x)
            x = net.up[level].upsample(x) if level else x
        return net.conv_out(F.silu(net.norm_out(x), inplace=True))

    @staticmethod
    def _residual(block: Any, x: Tensor) -> Tensor:
        h = block.conv1(F.silu(block.norm1(x), inplace=True))
        h = block.conv2(F.silu(block.norm2(h), inplace=True))
        return h + (x if block.in_channels == block.out_channels else block.nin_shortcut(x))


def tiled_vae(studio: Studio) -> Undo:
    """The bound method that is put back stays on the instance."""
    decoder = studio.decoder
    if not hasattr(decoder, "original_forward"):
        decoder.original_forward = decoder.forward
    decoder.forward = TiledVae(decoder)
    return lambda: setattr(decoder, "forward", decoder.original_forward)


# sd-webui-kohya-hiresfix


class Scaler(nn.Module):
    """Stands in a list of blocks, around the block that was there."""

    def __init__(self, block: nn.Module, scale: float) -> None:
        super().__init__()
        self.block, self.scale = block, scale

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        return self.block(F.interpolate(x, scale_factor=self.scale, mode="bicubic"), *args)


def kohya_hiresfix(studio: Studio) -> Undo:
    """Wraps an input block and its output block before the first step, and unwraps them before the last."""
    inputs, outputs = studio.unet.input_blocks, studio.unet.output_blocks

    def before_step() -> None:
        if studio.step == 0:
            inputs[1], outputs[-2] = Scaler(inputs[1], 0.5), Scaler(outputs[-2], 2.0)
        elif studio.step == 1:
            inputs[1].scale, outputs[-2].scale = 0.75, 1.34
        else:
            inputs[1], outputs[-2] = inputs[1].block, outputs[-2].block

    studio.before_step.append(before_step)
    return lambda: studio.before_step.remove(before_step)


# sd_webui_SAG


def self_attention_guidance(studio: Studio) -> Undo:
    """A function bound to one attention, which keeps its map; the model is called again after each step."""
    attention, maps = studio.unet.middle_block[1].transformer_blocks[0].attn1, {}
    captured = attention.forward

    def logging(self: Any, x: Tensor, context: Any = None, mask: Any = None) -> Tensor:
        out, maps["latest"] = _attended(self, x, x if context is None else context)
        return out

    def guided(x: Tensor, noise: Tensor) -> Tensor:
        salience = maps["latest"][-len(x) :].mean(1).sum(1).unflatten(-1, (4, 4)).unsqueeze(1)
        blurred = F.avg_pool2d(x, 3, stride=1, padding=1)
        degraded = torch.where(F.interpolate(salience, x.shape[-2:]) > 1, blurred, x)
        again = studio.denoiser(degraded, _noise(2, 154, CONTEXT_WIDTH))
        return noise + 0.75 * (noise - again)

    attention.forward = logging.__get__(attention, type(attention))
    studio.after_step.append(guided)
    return lambda: (setattr(attention, "forward", captured), studio.after_step.remove(guided))


# sd-webui-animatediff


class MotionModule(nn.Module):
    """Mixes the frames of a batch, which come after each other for the prompt and for the negative prompt."""

    def forward(self, x: Tensor) -> Tensor:
        frames = x.unflatten(0, (2, -1))
        return x + 0.5 * frames.mean(1, keepdim=True).expand_as(frames).flatten(0, 1)


def animatediff(studio: Studio) -> Undo:
    """Motion modules in most containers of blocks; version 2: one in the middle too."""
    middle = studio.unet.middle_block
    undo = _motion_in_outer_blocks(studio.unet)
    middle.insert(-1, MotionModule())
    return lambda: (undo(), middle.pop(-2))


def animatediff_1(studio: Studio) -> Undo:
    """Version 1: the norms see all frames at once, by a replaced GroupNorm32.forward."""
    inner: Any = ldm_util.GroupNorm32.forward
    undo = _motion_in_outer_blocks(studio.unet)

    def forward(norm: Any, x: Tensor) -> Tensor:
        by_picture = x.unflatten(0, (2, -1)).transpose(1, 2)
        return inner(norm, by_picture).transpose(1, 2).flatten(0, 1)

    ldm_util.GroupNorm32.forward = forward
    return lambda: (undo(), setattr(ldm_util.GroupNorm32, "forward", inner))


def _motion_in_outer_blocks(unet: Any) -> Undo:
    places = []
    for container in (unet.input_blocks[1], unet.input_blocks[3], *unet.output_blocks):
        if type(container[-1]).__name__ == "Upsample":
            container.insert(-1, MotionModule())
            places.append((container, -2))
        else:
            container.append(MotionModule())
            places.append((container, -1))
    return lambda: [container.pop(place) for container, place in places]


# adetailer


def adetailer(studio: Studio) -> Undo:
    """Draws a part of the finished picture again: a generation of another size inside the one that runs."""

    def draw_again(image: Tensor) -> Tensor:
        studio.after_picture.remove(draw_again)  # its own script takes no part in that
        latents = F.avg_pool2d(image, 2)[..., :6, :4]
        again = studio.picture(torch.cat([latents, latents[:, :1]], dim=1))
        studio.after_picture.append(draw_again)
        image[..., :12, :8] = again
        return image

    studio.after_picture.append(draw_again)
    return lambda: studio.after_picture.remove(draw_again)


class Style(NamedTuple):
    """One way to patch, and what a picture with it is made of."""

    apply: Callable[[Studio], Undo]
    direct: int = PICTURE  # blocks that run our code
    host: int = 0  # blocks that run as the host's modules
    reason: str = "^$"  # what each of the reasons matches


ATTN1, ATTN2 = (f"attn{number}: CrossAttention has a forward of its own" for number in (1, 2))
MOTION = r"unknown block tests\.fakes\.extensions\.MotionModule"

STYLES: dict[str, Style] = {
    "FreeU": Style(freeu),
    "LoRA Block Weight": Style(lora_block_weight),
    "LoRA Block Weight of steps": Style(lora_block_weight_of_steps),
    "Regional Prompter": Style(regional_prompter, PICTURE - STEPS * 7, STEPS * 7, ATTN2),
    "Regional Prompter, latents": Style(
        regional_prompter_of_latents, PICTURE - STEPS * 16, STEPS * 16, r"Linear\.forward was replaced"
    ),
    "Tiled Diffusion": Style(tiled_diffusion, 2 * STEPS * UNET + DECODER),
    "Mixture of Diffusers": Style(mixture_of_diffusers, 2 * STEPS * UNET + DECODER),
    "Tiled VAE": Style(tiled_vae, PICTURE - DECODER),  # which runs the decoder's leaves by itself
    "Kohya Hires.fix": Style(kohya_hiresfix),
    "Self Attention Guidance": Style(self_attention_guidance, PICTURE + STEPS * (UNET - 2), 2 * STEPS, ATTN1),
    "AnimateDiff": Style(animatediff, STEPS * 3 + DECODER, STEPS * 23, MOTION),
    "AnimateDiff 1": Style(
        animatediff_1, STEPS * 3 + DECODER, STEPS * 22, rf"{MOTION}|GroupNorm32\.forward was replaced"
    ),
    "ADetailer": Style(adetailer, 2 * PICTURE),
}
