"""Start a webui on this machine's CPU, offline, and wait until its model is loaded.

Each server has a data folder of its own, WEBUI/tmp/accel-host-PORT, with its settings, log, caches and
extensions (as links): what else is installed in the webui is not loaded, and two servers of one webui do not
meet. The models are those of the webui. The server listens on 127.0.0.1 only and is detached: it outlives
this command until stop.py ends it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .running_server import RunningServer, process_start, state_folder

FLAGS = (
    "--skip-prepare-environment",
    "--skip-torch-cuda-test",
    "--skip-version-check",
    "--skip-python-version-check",
    "--use-cpu=all",
    "--no-half",
    "--no-download-sd-model",
    "--do-not-download-clip",
    "--disable-console-progressbars",
    "--server-name=127.0.0.1",
)
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
}
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
SETTINGS = {
    "samples_save": False,
    "grid_save": False,
    "show_progress_type": "Approx cheap",  # the default preview downloads a model for SDXL
}


class StartFailed(Exception):
    """The server ended, or did not get ready in time."""


@dataclass(frozen=True)
class Launch:
    """How to start one server; ``extensions`` maps the name of a link to the folder it leads to.

    ``copies`` are extensions too, of which the server gets copies: some write into their folder.
    """

    webui: Path
    venv: Path
    hf_home: Path
    checkpoint: str
    port: int
    extensions: dict[str, Path] = field(default_factory=dict)
    copies: dict[str, Path] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    ui: bool = False
    api: bool = True
    timeout_s: float = 300.0

    @property
    def data(self) -> Path:
        """Data folder of this server."""
        return state_folder(self.webui, self.port)

    @property
    def log(self) -> Path:
        """File with all that the server prints."""
        return self.data / "server.log"

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        """Command line of the server, to be run in the webui's folder."""
        checkpoint = find_checkpoint(self.webui, self.checkpoint)
        command = [str(self.venv / "bin" / "python"), "launch.py", *FLAGS]
        command += ["--data-dir", str(self.data), "--models-dir", str(self.webui / "models")]
        command += ["--embeddings-dir", str(self.webui / "embeddings")]
        command += ["--port", str(self.port), "--ckpt", str(checkpoint)]
        command += [] if self.ui else ["--nowebui"]
        command += ["--api"] if self.api else []
        return [*command, *self.flags]

    def environment(self) -> dict[str, str]:
        """Environment of the server: offline, one thread unless the caller chose otherwise."""
        environment = THREADS | dict(os.environ) | OFFLINE
        environment |= {"HF_HOME": str(self.hf_home), "MPLCONFIGDIR": str(self.data / "matplotlib")}
        environment.pop("COMMANDLINE_ARGS", None)  # launch.py would add these flags to ours
        return environment

    def prepare(self) -> None:
        """Make the data folder with fresh settings, and links to the extensions or copies of them."""
        links = self.data / "extensions"
        links.mkdir(parents=True, exist_ok=True)
        for old in links.iterdir():
            if old.is_symlink():
                old.unlink()
            else:
                shutil.rmtree(old)
        for name, target in (self.extensions | self.copies).items():
            if not target.is_dir():
                raise StartFailed(f"extension {target} is not a folder")
            if name in self.copies:
                shutil.copytree(target, links / name, ignore=shutil.ignore_patterns(".git"))
            else:
                (links / name).symlink_to(target)
        (self.data / "config.json").write_text(json.dumps(SETTINGS | self.settings))


def find_checkpoint(webui: Path, name: str) -> Path:
    """Path of the checkpoint ``name``, with or without ``.safetensors``."""
    folder = webui / "models" / "Stable-diffusion"
    for candidate in (folder / name, folder / f"{name}.safetensors"):
        if candidate.is_file():
            return candidate
    raise StartFailed(f"no checkpoint {name} in {folder}")


def answers(url: str) -> bool:
    """Whether a server answers there, be it with an error."""
    try:
        with urllib.request.urlopen(f"{url}/sdapi/v1/options", timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def wait_until_ready(process: subprocess.Popen[bytes], launch: Launch) -> None:
    """Return once the model is loaded and the server answers."""
    deadline = time.monotonic() + launch.timeout_s
    while time.monotonic() < deadline:
        text = launch.log.read_text(errors="replace")
        if process.poll() is not None:
            raise StartFailed(f"server ended with status {process.returncode}")
        if "Stable diffusion model failed to load" in text:
            raise StartFailed("the checkpoint did not load")
        if "Model loaded in" in text and "Startup time:" in text and answers(launch.url):
            return
        time.sleep(0.3)
    raise StartFailed(f"not ready after {launch.timeout_s:.0f} s")


def start(launch: Launch) -> RunningServer:
    """Start the server and wait until it is ready.

    Raises StartFailed, with the end of the server's log, if it does not get so far.
    """
    running = RunningServer.load(launch.data)
    if (running and running.alive()) or answers(launch.url):
        raise StartFailed(
            f"port {launch.port} is taken; `python -m tests.host.kit.stop` ends a server of this kit"
        )
    launch.prepare()
    with launch.log.open("w") as output:
        process = subprocess.Popen(
            launch.command(),
            cwd=launch.webui,
            env=launch.environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = RunningServer(process.pid, process_start(process.pid) or 0)
    server.save(launch.data)
    try:
        wait_until_ready(process, launch)
    except StartFailed as failure:
        server.end()
        with launch.log.open(errors="replace") as log:
            tail = "".join(deque(log, maxlen=20))
        raise StartFailed(f"{failure}; full log: {launch.log}\n{tail}") from None
    except BaseException:
        server.end()
        raise
    return server


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--webui", type=Path, required=True, help="webui checkout")
    parser.add_argument("--venv", type=Path, required=True, help="its virtual environment")
    parser.add_argument("--hf-home", type=Path, required=True, help="folder written by make_clip.py")
    parser.add_argument("--checkpoint", required=True, help="file name in models/Stable-diffusion")
    parser.add_argument("--ui", action="store_true", help="serve the web page too, not only the API")
    parser.add_argument("--port", type=int, default=7861)
    parser.add_argument(
        "--extension", type=Path, action="append", default=[], help="folder to link, repeatable"
    )
    parser.add_argument("webui_flags", nargs="*", help="after --, further flags for the webui")
    return parser.parse_args()


def main() -> None:
    """Start one server as the command line says."""
    given = parse_arguments()
    launch = Launch(
        webui=given.webui.resolve(),
        venv=given.venv.absolute(),
        hf_home=given.hf_home.resolve(),
        checkpoint=given.checkpoint,
        port=given.port,
        extensions={path.resolve().name: path.resolve() for path in given.extension},
        flags=tuple(given.webui_flags),
        ui=given.ui,
    )
    began = time.monotonic()
    try:
        server = start(launch)
    except StartFailed as failure:
        sys.exit(str(failure))
    print(f"READY {launch.url} pid {server.pid} after {time.monotonic() - began:.0f} s, log {launch.log}")


if __name__ == "__main__":
    main()
