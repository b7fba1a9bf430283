"""Models of the suite of GPUs: of the webui's own classes, at full size or as toys, of random weights."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import logging
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

from lib_accel.bench.graphs_models import home_of, randomized
from lib_accel.errors import AccelError


class ModelError(AccelError):
    """A model cannot be built here."""


class Where(NamedTuple):
    """Where models run and in which numbers; `autocast` as webuis have it while they sample."""

    device: torch.device
    dtype: torch.dtype
    autocast: bool
    is_toy: bool = False


def gpu_or_dry(*, is_dry: bool) -> Where:
    """The GPU in half precision, or toys on the CPU. Raises ModelError where there is no GPU."""
    if is_dry:
        return Where(torch.device("cpu"), torch.float32, False, True)
    if not torch.cuda.is_available():
        raise ModelError("torch sees no NVIDIA GPU; --dry-run tries every row at a tiny size on the CPU")
    return Where(torch.device("cuda", torch.cuda.current_device()), torch.float16, True)


class Form(NamedTuple):
    """A model: who has its class, its settings at full size, and what of them is smaller in a toy."""

    package: str
    settings: Mapping[str, Any]
    toy: Mapping[str, Any]
    context: tuple[int, int] = (0, 0)  # width of the text encoder's output, in full and of a toy
    vector: tuple[int, int] = (0, 0)  # width of SDXL's vector


# Sources: the configurations that webuis ship: v1-inference.yaml, sd_xl_base.yaml, CLIP ViT-L/14's text half.
_SD15 = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "attention_resolutions": (4, 2, 1),
    "num_res_blocks": 2,
    "channel_mult": (1, 2, 4, 4),
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "context_dim": 768,
    "use_checkpoint": False,
    "legacy": False,
}
_SDXL = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "attention_resolutions": (4, 2),
    "num_res_blocks": 2,
    "channel_mult": (1, 2, 4),
    "num_head_channels": 64,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "use_linear_in_transformer": True,
    "transformer_depth": (1, 2, 10),
    "context_dim": 2048,
    "spatial_transformer_attn_type": "softmax",
    "use_checkpoint": False,
    # Of the revision that webuis pin; later ones do not ask.
    "use_spatial_transformer": True,
    "legacy": False,
}
_VAE = {
    "ch": 128,
    "out_ch": 3,
    "ch_mult": (1, 2, 4, 4),
    "num_res_blocks": 2,
    "attn_resolutions": (),
    "in_channels": 3,
    "resolution": 256,
    "z_channels": 4,
}
_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}

_HOMES = (
    *(
        f"{package}.modules.diffusionmodules.{room}"
        for package in ("ldm", "sgm")
        for room in ("openaimodel", "model")
    ),
    "transformers.models.clip.modeling_clip",
)

FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "sd15": Form(
            "ldm",
            _SD15,
            {
                "model_channels": 64,
                "num_res_blocks": 1,
                "channel_mult": (1, 2),
                "attention_resolutions": (2,),
                "num_heads": 2,
                "context_dim": 32,
            },
            context=(768, 32),
        ),
        "sdxl": Form(
            "sgm",
            _SDXL,
            {
                "model_channels": 64,
                "num_res_blocks": 1,
                "channel_mult": (1, 2),
                "attention_resolutions": (2,),
                "num_head_channels": 32,
                # Of a class that cannot be told the size of a head; one that can is not told this.
                "num_heads": 2,
                "transformer_depth": (1, 2),
                "context_dim": 32,
                "adm_in_channels": 20,
            },
            context=(2048, 32),
            vector=(2816, 20),
        ),
        "vae": Form("ldm", _VAE, {"ch": 32, "ch_mult": (1, 2, 2, 2), "num_res_blocks": 1}),
        "text": Form(
            "transformers",
            _TEXT,
            {
                "vocab_size": 1000,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
            },
        ),
    }
)


def import_packages() -> None:
    """Imports the classes of all forms that are installed, before anybody stands in front of them."""
    for home in _HOMES:
        with contextlib.suppress(ImportError), _hushed():
            importlib.import_module(home)


def model_of(name: str, where: Where, seed: int = 0) -> Any:
    """A model of FORMS in evaluation mode. Raises ModelError if its package is missing."""
    form = FORMS[name]
    settings = {**form.settings, **(form.toy if where.is_toy else {})}
    try:
        with _hushed(), torch.no_grad():
            if form.package == "transformers":
                return randomized(_text_encoder(settings), seed).to(where.device, where.dtype)
            return randomized(_compvis(name, form.package, settings, where), seed)
    except ImportError as error:
        raise ModelError(
            f"{form.package} cannot be imported ({type(error).__name__}: {error}); see docs/gpu-bench.md"
        ) from error


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """These packages tell of themselves, on stdout too, where the table goes."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _compvis(name: str, package: str, settings: Mapping[str, Any], where: Where) -> nn.Module:
    kind: Any
    if name == "vae":
        kind = importlib.import_module(f"{package}.modules.diffusionmodules.model").Decoder
        known: Mapping[str, Any] = settings
    else:
        kind = home_of(package).UNetModel
        known = _known(kind, settings)
    # Without numbers at first: to draw those of SDXL on a CPU takes longer than all that is measured.
    with torch.device("meta"):
        model: nn.Module = kind(**known)
    assert not list(model.buffers())  # which would hold nothing now
    return model.to(where.dtype).to_empty(device=where.device)


def _known(kind: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings that the class takes, which the stand-in of the tests has fewer of."""
    names = inspect.signature(kind).parameters
    known = {name: value for name, value in settings.items() if name in names}
    if "num_head_channels" in known:
        known.pop("num_heads", None)
    elif isinstance(known.get("transformer_depth"), tuple):
        known["transformer_depth"] = known["transformer_depth"][-1]
    return known


def _text_encoder(settings: Mapping[str, Any]) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**settings, attn_implementation="sdpa"))
