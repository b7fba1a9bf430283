"""What to do about each reason for which something is not as fast as it could be."""

from __future__ import annotations

import re

# The first that matches counts. Names of settings are those of the webui's page.
_ADVICE = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        (r"computed in pieces", "nothing to do, but smaller or fewer pictures at once are faster"),
        (
            r"^failed: OutOfMemory|out of memory",
            "draw smaller or fewer pictures at once; the next one is tried fast again",
        ),
        (r"^failed: ", "a fault of this extension. The picture is right. Please copy the report and send it"),
        (
            r"move between pictures|no memory for its graph",
            "start the webui without --medvram, if the memory suffices",
        ),
        (
            r"no contest can be held|no process to hold contests",
            "the picture is right. Restart the webui; if it stays, please copy the report and send it",
        ),
        (
            r"(residual blocks|attention parts) were not called yet",
            "draw a picture, or press Warm up; it stays so with --medvram and --lowvram",
        ),
        (
            r"calls of (residual blocks|attention parts) are measured",
            "wait until nobody draws, or press Warm up",
        ),
        (
            r"its weights are on |moved? to the CPU",
            "start the webui without --medvram or --lowvram, if the memory suffices",
        ),
        (r"no memory to lay its weights", "draw fewer pictures at once, or lower Memory for CUDA graphs"),
        (r"has laid its weights channels last", "nothing to do: that is what --opt-channelslast does"),
        (
            r"its weights (are|share)|has packed its weights",
            "nothing to do: weights of this kind stay as they are",
        ),
        (
            r"sageattention is not installed",
            "install the package sageattention beside torch, or set Settings, Accel, Attention to auto",
        ),
        (r"^sage failed", "the picture is right. Set Settings, Accel, Attention to auto"),
        (r"keys, needs a multiple|^heads of ", "nothing to do: such calls take what is fastest and exact"),
        (r"its graph needs|its graph and others", "raise Settings, Accel, Memory for CUDA graphs"),
        (
            r"copy it takes|a replay takes|another thread was",
            "nothing to do: it is as fast without a graph",
        ),
        (
            r"a replay differs|waits for the device",
            "the picture is right. Please copy the report and send it",
        ),
        (r"lora_functional", "untick Settings, Lora, 'functional' LoRA"),
        (r"--upcast-sampling", "start the webui without --upcast-sampling, unless pictures are then black"),
        (r"fp8", "set Settings, Optimizations, FP8 weight to Disable, if the memory suffices"),
        (r"manual cast", "start the webui without --precision half, unless the card needs it"),
        (r"another extension's UNet", "set Settings, Stable Diffusion, SD Unet to None"),
        (r"being trained", "it is fast again when the training has ended"),
        (r"hypernetwork is active", "take the hypernetwork out of the prompt, or use a LoRA instead"),
        (r"upcast_attn", "untick Settings, Stable Diffusion, Upcast cross attention layer to float32"),
        (r"[Hh]yper[Tt]ile", "untick Settings, Hypertile; at usual sizes acceleration alone gains more"),
        (r"tomesd|ToMe", "set Settings, Optimizations, Token merging ratio to 0"),
        (r"scripts\.hook", "it is fast again without this kind of ControlNet unit"),
        (r"forward hook", "an extension watches this part; disable that extension to have it fast"),
        (
            r"forward had been replaced before us",
            "disable extensions that patch models, one by one, and restart the webui",
        ),
        (r"the option code", "set Settings, Accel, Code of the blocks to auto"),
        (r"compiled by torch\.compile", "somebody else compiled this model already; nothing to do"),
        (r"the device is", "acceleration needs an NVIDIA or AMD card, or the CPU"),
        (r"restart", "restart the webui"),
        (r"gradients are on", "it is fast again when no training runs"),
        (r"peft|set_loras", "use handle.set_loras instead of load_lora_weights"),
        (r" of its own: | was replaced by ", "disable the extension that is named to have this part fast"),
    )
)
_OTHERWISE = "nothing to do: this part runs as it does without the extension"


def advice(reason: str) -> str:
    """One sentence for the user."""
    return known_advice(reason) or _OTHERWISE


def known_advice(reason: str) -> str | None:
    """The same, or None where there is nothing to say of this reason alone."""
    return next((text for pattern, text in _ADVICE if pattern.search(reason)), None)
