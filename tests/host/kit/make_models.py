"""Write random-weight checkpoints, LoRAs and ControlNets into a webui's models folder.

Targets:
  tiny     tiny.safetensors, tiny.ckpt, tiny2.safetensors with configs, `lora`, `cn`, a hypernetwork, VAEs
  inpaint  tiny_inpaint.safetensors, an SD1 inpainting model, with its config and `lora`
  v2       tiny_v2.safetensors, an SD2 model with v-prediction, with its config and `lora`
  xl       tiny_xl.safetensors, an SDXL model, with its config, `lora` and `cn`
  wide     tiny_wide.safetensors, an SD1 model of which two levels have 320 channels, with its config
  full     full.safetensors with the real SD1 sizes (2 GB, needs 8 GB of memory), and its `lora` and `cn`
  lora     the LoRAs of the checkpoints that are there already
  cn       the ControlNets of the checkpoints that are there already (needs the sd-webui-controlnet extension)
Run it with the python of the webui's venv, as a module. With --missing, what is there stays as it is.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from . import lora_kinds, lora_names, random_weights, tiny_configs

EXTRA_LORA_SEED = 1000
CLIP_PATH = re.compile(r"version: (/\S*tiny-clip)")
STEMS = {
    "tiny": "tiny",
    "inpaint": "tiny_inpaint",
    "v2": "tiny_v2",
    "xl": "tiny_xl",
    "wide": "tiny_wide",
    "full": "full",
}
HYPERNETWORK_SIZES = (tiny_configs.CLIP_WIDTH, 256)
SEEDS = {"inpaint": 400, "v2": 500, "xl": 600, "wide": 900}
TARGETS = (*STEMS, "lora", "cn")
VAE_SEED, EMBEDDING_SEED = 700, 800
VECTORS = 3  # tokens of each embedding
EMBEDDINGS = {  # widths, under the names of the format
    "tiny": {"emb_params": tiny_configs.CLIP_WIDTH},
    "tiny_v2": {"emb_params": tiny_configs.OPEN_CLIP_WIDTH},
    "tiny_xl": {"clip_l": tiny_configs.CLIP_WIDTH, "clip_g": tiny_configs.OPEN_CLIP_WIDTH},
}
CONTROLNETS = {
    "tiny": {"tiny_cn_a": 21, "tiny_cn_b": 22},
    "tiny_xl": {"tiny_xl_cn_a": 72, "tiny_xl_cn_b": 73},
    "full": {"full_cn_a": 41},
}
NETWORKS = {
    "tiny": {
        "tiny_lora_a": {"kind": "lora", "rank": 4, "seed": 11},
        "tiny_lora_b": {"kind": "lora", "rank": 8, "seed": 12, "resnets": True},
        "tiny_loha": {"kind": "loha", "rank": 4, "seed": 13, "resnets": True},
        "tiny_lokr": {"kind": "lokr", "rank": 4, "seed": 14, "resnets": True},
        "tiny_full": {"kind": "full", "rank": 0, "seed": 15},
        "tiny_ia3": {"kind": "ia3", "rank": 0, "seed": 16},
        "tiny_dora": {"kind": "dora", "rank": 4, "seed": 17, "resnets": True},
        "tiny_glora": {"kind": "glora", "rank": 4, "seed": 18, "resnets": True},
        "tiny_oft": {"kind": "oft", "rank": 0, "seed": 19, "resnets": True},
        "tiny_norm": {"kind": "norm", "rank": 0, "seed": 20, "resnets": True},
        "tiny_lora_c": {"kind": "lora", "rank": 4, "seed": 21},
        "tiny_lora_d": {"kind": "lora", "rank": 8, "seed": 22, "resnets": True},
        "tiny_misshapen": {"kind": "misshapen", "rank": 4, "seed": 23},
    },
    "tiny_inpaint": {"tiny_inpaint_lora_a": {"kind": "lora", "rank": 4, "seed": 51, "resnets": True}},
    "tiny_v2": {"tiny_v2_lora_a": {"kind": "lora", "rank": 4, "seed": 61, "resnets": True}},
    "tiny_xl": {"tiny_xl_lora_a": {"kind": "lora", "rank": 4, "seed": 71, "resnets": True}},
    "tiny_wide": {},
    "full": {
        "full_lora_a": {"kind": "lora", "rank": 16, "seed": 31},
        "full_lora_b": {"kind": "lora", "rank": 16, "seed": 32},
        "full_lora_c": {"kind": "lora", "rank": 16, "seed": 33},
        "full_lora_d": {"kind": "lora", "rank": 16, "seed": 34},
    },
}


class ModelFolder:
    """The models folder of one webui, and what this kit writes there."""

    def __init__(self, webui: Path, hf_home: Path, *, keep: bool = False):
        random_weights.use_webui(webui)
        self.keep = keep  # what is there already
        self.webui = webui
        self.clip = hf_home / "tiny-clip"
        self.checkpoints = webui / "models" / "Stable-diffusion"
        self.loras = webui / "models" / "Lora"
        self.controlnets = webui / "models" / "ControlNet"
        for folder in (self.checkpoints, self.loras, self.controlnets):
            folder.mkdir(parents=True, exist_ok=True)

    def lacks(self, path: Path) -> bool:
        """Whether this file has to be written."""
        return not (self.keep and path.exists())

    def lacks_checkpoint(self, *files: str) -> bool:
        """Whether one of these checkpoints has to be written, or has lost its text encoder's config."""
        configs = [(self.checkpoints / file).with_suffix(".yaml") for file in files]
        texts = [config.read_text() for config in configs if config.exists()]
        lost = any(not Path(path).exists() for text in texts for path in CLIP_PATH.findall(text))
        return lost or any(self.lacks(self.checkpoints / file) for file in files)

    def make_tiny(self, width: int) -> None:
        """Write three small checkpoints that cover both ways in which the webui changes models.

        tiny.ckpt shares the stem, hence the config, of tiny.safetensors: switching loads weights into the
        same object. tiny2 has the weights of tiny.ckpt but its own config: switching makes a new object.
        """
        if not self.lacks_checkpoint("tiny.safetensors", "tiny2.safetensors", "tiny.ckpt"):
            return
        config = tiny_configs.tiny_config(self.webui, "tiny", width, self.clip)
        for stem in ("tiny", "tiny2"):
            OmegaConf.save(config, self.checkpoints / f"{stem}.yaml")
        self.write(self.checkpoints / "tiny.safetensors", random_weights.build_checkpoint(config, seed=100))
        other = random_weights.build_checkpoint(config, seed=200)
        self.write(self.checkpoints / "tiny2.safetensors", other)
        torch.save({"state_dict": other}, self.checkpoints / "tiny.ckpt")
        report(self.checkpoints / "tiny.ckpt")

    def make_vaes(self, width: int) -> None:
        """Write a VAE for every small checkpoint, and one whose decoder makes NaN.

        No name begins with that of a checkpoint, or the webui would load the VAE with it.
        """
        folder = self.webui / "models" / "VAE"
        folder.mkdir(exist_ok=True)
        other, nan = (folder / f"{name}_vae.safetensors" for name in ("other", "nan"))
        if self.lacks(other) or self.lacks(nan):
            config = tiny_configs.tiny_config(self.webui, "tiny", width, self.clip)
            vae = random_weights.build_vae(config, VAE_SEED)
            self.write(other, vae)
            self.write(nan, random_weights.overflowing(vae))

    def make_embedding(self, stem: str) -> None:
        """Write the textual inversion embedding of checkpoint ``stem``, if it has one."""
        path = self.webui / "embeddings" / f"{stem}_embedding.safetensors"
        if stem in EMBEDDINGS and self.lacks(path):
            path.parent.mkdir(exist_ok=True)
            embedding = random_weights.build_embedding(EMBEDDINGS[stem], VECTORS, EMBEDDING_SEED)
            self.write(path, embedding)

    def make_other(self, target: str, width: int) -> None:
        """Write the one small checkpoint of a target other than tiny, and its config."""
        if not self.lacks_checkpoint(f"{STEMS[target]}.safetensors"):
            return
        config = tiny_configs.tiny_config(self.webui, target, width, self.clip)
        OmegaConf.save(config, self.checkpoints / f"{STEMS[target]}.yaml")
        state_dict = random_weights.build_checkpoint(config, SEEDS[target])
        self.write(self.checkpoints / f"{STEMS[target]}.safetensors", state_dict)

    def make_full(self) -> None:
        """Write one checkpoint with the layer sizes of a real SD1 model."""
        if not self.lacks_checkpoint("full.safetensors"):
            return
        config = OmegaConf.load(self.webui / tiny_configs.FULL_CONFIG)
        self.write(self.checkpoints / "full.safetensors", random_weights.build_checkpoint(config, seed=300))

    def make_loras(self, stem: str, extra: int, rank: int) -> None:
        """Write the LoRAs listed for checkpoint ``stem``, and ``extra`` more of one rank."""
        networks: dict[str, dict[str, Any]] = dict(NETWORKS[stem])
        for number in range(extra):
            seed = EXTRA_LORA_SEED + number
            networks[f"{stem}_lora_{number:02}"] = {"kind": "lora", "rank": rank, "seed": seed}
        missing = {name: recipe for name, recipe in networks.items() if self.lacks(self.lora(name))}
        if missing:
            self.write_loras(stem, missing)
        cut = self.lora(f"{stem}_cut")
        if stem == "tiny" and self.lacks(cut):
            whole = self.lora("tiny_lora_b").read_bytes()
            cut.write_bytes(whole[: len(whole) // 2])
            report(cut)

    def write_loras(self, stem: str, missing: dict[str, dict[str, Any]]) -> None:
        """Write these LoRAs for the layers of checkpoint ``stem``."""
        state_dict = load_file(self.checkpoints / f"{stem}.safetensors")
        for name, recipe in missing.items():
            network = lora_kinds.make_network(state_dict, **recipe)
            self.write(self.lora(name), network, lora_names.metadata(state_dict))

    def lora(self, name: str) -> Path:
        """File of this LoRA."""
        return self.loras / f"{name}.safetensors"

    def make_controlnets(self, stem: str) -> None:
        """Write the ControlNets of checkpoint ``stem``, if it has any, in the sizes found in its weights."""
        if stem not in CONTROLNETS:
            return
        if not (self.webui / random_weights.CONTROLNET_SOURCE).exists():
            print("no ControlNets: the webui has no sd-webui-controlnet extension")
            return
        config = random_weights.controlnet_config(self.unet_shapes(stem))
        for name, seed in CONTROLNETS[stem].items():
            path = self.controlnets / f"{name}.safetensors"
            if self.lacks(path):
                self.write(path, random_weights.build_controlnet(self.webui, config, seed))

    def unet_shapes(self, stem: str) -> dict[str, Sequence[int]]:
        """Shapes of the weights of a checkpoint's UNet, by their names in it."""
        prefix = "model.diffusion_model."
        with safe_open(self.checkpoints / f"{stem}.safetensors", "pt") as weights:
            keys = [key for key in weights.keys() if key.startswith(prefix)]  # noqa: SIM118, not a mapping
            return {key.removeprefix(prefix): weights.get_slice(key).get_shape() for key in keys}

    def present(self) -> list[str]:
        """Stems of the checkpoints of this kit that are there."""
        return [stem for stem in NETWORKS if (self.checkpoints / f"{stem}.safetensors").exists()]

    def make_hypernetwork(self) -> None:
        """Write a hypernetwork for the tiny model's cross-attention and widest self-attention."""
        path = self.webui / "models" / "hypernetworks" / "tiny_hypernetwork.pt"
        if not self.lacks(path):
            return
        path.parent.mkdir(exist_ok=True)
        torch.save(random_weights.build_hypernetwork(HYPERNETWORK_SIZES, seed=81), path)
        report(path)

    @staticmethod
    def write(
        path: Path, state_dict: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
    ) -> None:
        """Save as safetensors and say so."""
        save_file(state_dict, path, metadata={"format": "pt"} | (metadata or {}))
        report(path)


def report(path: Path) -> None:
    """Print what was written."""
    print(f"{path.stat().st_size / 2**20:8.1f} MiB  {path}", flush=True)


def parse_arguments() -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="+", choices=TARGETS, metavar="|".join(TARGETS))
    parser.add_argument("--webui", type=Path, required=True, help="webui checkout with its repositories")
    parser.add_argument("--hf-home", type=Path, required=True, help="folder written by make_clip.py")
    parser.add_argument("--width", type=int, default=64, help="channels of the tiny UNets (default 64)")
    parser.add_argument("--loras", type=int, default=0, metavar="N", help="write N more, tiny_lora_00 ...")
    parser.add_argument("--rank", type=int, default=4, help="rank of these N LoRAs (default 4)")
    parser.add_argument("--missing", action="store_true", help="leave what is there as it is")
    arguments = parser.parse_args()
    step = max(map(tiny_configs.width_step, arguments.targets))
    if arguments.width <= 0 or arguments.width % step:
        parser.error(f"--width must be a multiple of {step}, because of the group norms or the head size")
    return arguments


def main() -> None:
    """Write the targets in the order given."""
    arguments = parse_arguments()
    hf_home = arguments.hf_home.resolve()
    os.environ |= {"HF_HOME": str(hf_home), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    folder = ModelFolder(arguments.webui.resolve(), hf_home, keep=arguments.missing)
    for target in arguments.targets:
        if target == "tiny":
            folder.make_tiny(arguments.width)
            folder.make_vaes(arguments.width)
            folder.make_hypernetwork()
        elif target == "full":
            folder.make_full()
        elif target in SEEDS:
            folder.make_other(target, arguments.width)
        stems = [STEMS[target]] if target in STEMS else folder.present()
        for stem in stems:
            if target not in ("lora", "cn"):
                folder.make_embedding(stem)
            if target != "cn":
                folder.make_loras(stem, arguments.loras, arguments.rank)
            if target != "lora":
                folder.make_controlnets(stem)


if __name__ == "__main__":
    main()
