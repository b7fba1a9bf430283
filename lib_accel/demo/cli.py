"""`python -m lib_accel demo`: the same pictures with stock diffusers and with ours, side by side."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_accel.bench.arguments import told
from lib_accel.demo.request import Request, request_of

if TYPE_CHECKING:
    from lib_accel.demo.show import Show


def main(argv: list[str]) -> int:
    """Shows what the command line asks for; 2, with one line on stderr, if it cannot."""
    return told(_demo, argv, name="demo")


def _demo(argv: list[str]) -> int:
    request = request_of(argv)  # before torch is loaded, which takes seconds
    from lib_accel.bench.quiet import quiet

    with quiet():
        from lib_accel.demo.show import show

        write(show(request), request)
    return 0


def write(shown: Show, request: Request) -> None:
    """Prints the table, and writes grid, plot and figures to where the request says."""
    from lib_accel.demo.grid import grid
    from lib_accel.demo.plot import plot
    from lib_accel.demo.table import table

    what, where = _what(shown.settings), _where(shown.environment)
    title = f"Time of a step by number of LoRAs ({shown.settings['lora_growth']})"
    grid(shown.outcomes, prompts=shown.settings["prompts"], hint=shown.hint, remarks=[what, where]).save(
        request.grid
    )
    plot(shown.points, title=title, remarks=[what, where]).save(request.plot)
    request.json.write_text(json.dumps(shown.as_dict(), indent=1) + "\n", "utf-8")
    print(table(shown.outcomes))
    print(f"\n{what}\n{where}")
    for name, file in (("pictures", request.grid), ("plot", request.plot), ("figures", request.json)):
        print(f"{name + ':':10}{_near(file)}")


def _what(settings: dict[str, Any]) -> str:
    size = f"{settings['width']}x{settings['height']}"
    loras = ", ".join(lora["name"] for lora in settings["loras"])
    worn = f"LoRAs {loras}, " if loras else ""
    return f"{settings['model']}, {worn}{size}, {settings['steps']} steps, {settings['dtype']}"


def _where(about: dict[str, Any]) -> str:
    threads = "1 thread" if about["threads"] == 1 else f"{about['threads']} threads"
    machine = about["gpu"] or f"{about['cpu']}, {threads}"
    return f"{machine}, torch {about['torch']}, diffusers {about['diffusers']}, peft {about['peft']}"


def _near(file: Path) -> str:
    """The path as seen from here, if the file is below; as it was given otherwise."""
    try:
        return os.fspath(file.resolve().relative_to(Path.cwd()))
    except ValueError:
        return os.fspath(file)
