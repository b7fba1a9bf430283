"""Write a Hugging Face home folder from which the webui builds its CLIP tokenizer and text encoder offline.

Two entries come from lib_accel/demo/data/clip_tokenizer: the hub cache entry of
openai/clip-vit-large-patch14, which the webui asks for by name, and tiny-clip, a plain folder with a
two-layer config for the tiny checkpoints.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

DATA = Path(__file__).resolve().parents[3] / "lib_accel" / "demo" / "data" / "clip_tokenizer"
REPOSITORY = "models--openai--clip-vit-large-patch14"
REVISION = "0" * 40  # the cache only needs refs/main and the snapshot folder to agree
TINY_CONFIG = {"num_hidden_layers": 2, "intermediate_size": 1536}


def write_hub_entry(hf_home: Path) -> Path:
    """Write the cache entry that ``from_pretrained("openai/clip-vit-large-patch14")`` finds offline."""
    entry = hf_home / "hub" / REPOSITORY
    snapshot = entry / "snapshots" / REVISION
    shutil.copytree(DATA, snapshot, dirs_exist_ok=True)
    (entry / "refs").mkdir(exist_ok=True)
    (entry / "refs" / "main").write_text(REVISION)
    (hf_home / "hub" / "version.txt").write_text("1")  # cache layout; without it transformers warns
    return snapshot


def write_tiny_clip(hf_home: Path) -> Path:
    """Write the folder of the small text encoder: the same tokenizer and width, fewer layers."""
    folder = hf_home / "tiny-clip"
    shutil.copytree(DATA, folder, dirs_exist_ok=True)
    config = json.loads((DATA / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | TINY_CONFIG, indent=2) + "\n")
    return folder


def write(hf_home: Path) -> None:
    """Write both entries, unless they are there."""
    if not (hf_home / "tiny-clip" / "config.json").exists():
        write_hub_entry(hf_home)
        write_tiny_clip(hf_home)


def main() -> None:
    """Parse the command line and write both entries."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to use as HF_HOME")
    hf_home = parser.parse_args().out.resolve()
    print(write_hub_entry(hf_home))
    print(write_tiny_clip(hf_home))


if __name__ == "__main__":
    main()
