"""A step that counts what the sampling steps of a picture ask of torch, without our code and with it.

Around the blocks of a UNet ours may ask for no more than the webui's own code, and may wait for a GPU nowhere
else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from .outcome import CLEAN, OFF, Outcome
from .picture import Picture
from .session import Session
from .step_counts import Steps, problems

_COUNTER = Path(__file__).with_name("step_counter.py")

# Makes a module of the counter's text, and stands in front of the sampler and of its denoiser.
_INSTALL = """
import sys, types
from modules import scripts, sd_models
from modules.sd_samplers_cfg_denoiser import CFGDenoiser
from modules.sd_samplers_common import Sampler
if "counter" not in store:
    counting = sys.modules["step_counter"] = types.ModuleType("step_counter")
    exec(compile(SOURCE, "step_counter.py", "exec"), vars(counting))
    counter = store["counter"] = counting.StepCounter()
    store["put back"] = launch, forward = Sampler.launch_sampling, CFGDenoiser.forward

    def control_models():
        for data in scripts.scripts_data:
            if data.script_class.__module__ == "controlnet.py":
                yield from getattr(data.script_class, "model_cache", {}).values()

    def launch_sampling(self, *args, **kwargs):
        unet = sd_models.model_data.sd_model.model.diffusion_model
        models = unet, *(each.model for each in control_models())
        modules = [module for model in models for module in model.modules()]
        blocks = [module for module in modules if type(module).__name__ == "TimestepEmbedSequential"]
        in_unet, in_blocks = counter.marked(counting.UNET, unet), counter.marked(counting.BLOCKS, *blocks)
        with in_unet, in_blocks, counter.counting():
            return launch(self, *args, **kwargs)

    def counted_forward(self, *args, **kwargs):
        counter.next_step()
        return forward(self, *args, **kwargs)

    Sampler.launch_sampling, CFGDenoiser.forward = launch_sampling, counted_forward
"""
_TELL = "import json; print(json.dumps(store['counter'].told()))"
_REMOVE = """
from modules.sd_samplers_cfg_denoiser import CFGDenoiser
from modules.sd_samplers_common import Sampler
if "counter" in store:
    Sampler.launch_sampling, CFGDenoiser.forward = store.pop("put back")
    del store["counter"]
"""


def install(session: Session) -> None:
    """Has the server count from now."""
    told = session.client.run_code(_INSTALL.replace("SOURCE", repr(_COUNTER.read_text("utf-8"))))
    assert not told.strip(), told


@dataclass(frozen=True)
class Cost:
    """Draw a picture without and with our code, and judge what their steps ask for."""

    picture: Picture

    def run(self, session: Session) -> list[Outcome]:
        """Draw both; the stock server draws the same twice, and its counts must be those of ours when off."""
        install(session)
        try:
            off, stock = drawn(session, self.picture, accel=False)
            on, ours = drawn(session, self.picture, accel=True)
        finally:
            session.client.run_code(_REMOVE)
        off.text = json.dumps(sorted([*asked, count] for asked, count in stock.total().items()))
        if session.ours:
            on.problems += problems(stock, ours)
        return [off, on]


def drawn(session: Session, picture: Picture, *, accel: bool) -> tuple[Outcome, Steps]:
    """The picture, and what its steps asked for; the counter must be installed."""
    speed, word = (CLEAN, "on") if accel else (OFF, "off")
    outcome = session.draw(replace(picture, label=f"{picture.label}, {word}", accel=accel, speed=speed))
    return outcome, Steps(json.loads(session.client.run_code(_TELL)))
