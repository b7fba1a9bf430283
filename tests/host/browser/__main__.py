"""Drives the webui's page in headless Chromium: `python -m tests.host.browser --webui DIR --venv DIR`.

Starts a webui with the extension, does what a user does, and looks at what the page then shows. Screenshots
go to the folder --shots. Exit status 1 if a scene failed, or if the page reported an error of ours.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import Error, sync_playwright

from ..kit import make_clip
from ..kit.start import start
from ..kit.stop import stop
from ..pair import Place, end_servers_when_terminated
from ..row import Group
from .page import Page
from .scenes import SCENES

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
]


def parser(description: str) -> argparse.ArgumentParser:
    """The options of everything that needs a webui and a browser."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--webui", type=Path, required=True, help="webui checkout")
    options.add_argument("--venv", type=Path, required=True, help="its virtual environment")
    options.add_argument("--chromium", help="the browser's program (default: playwright's own)")
    options.add_argument("--port", type=int, default=7871)
    return options


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    options = parser((__doc__ or "").split("\n")[0])
    options.add_argument("--shots", type=Path, default=Path("accel-shots"), help="folder for screenshots")
    options.add_argument("--scenes", default="", metavar="WORD", help="only scenes whose name contains it")
    return options.parse_args()


def main() -> int:
    """Run the scenes in order; 1 if one failed."""
    arguments = parse_arguments()
    end_servers_when_terminated()
    place = Place.make(arguments.webui, arguments.venv, arguments.port, accel=True)
    make_clip.write(place.hf_home)
    place.make_models({"tiny"})
    launch = place.launch(Group("browser", (), ui=True), ours=True)
    launch = replace(launch, settings={"quicksettings_list": ["sd_model_checkpoint", "accel_enabled"]})
    arguments.shots.mkdir(parents=True, exist_ok=True)
    failed = 0
    try:
        start(launch)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=arguments.chromium, args=FLAGS)
            page = Page(browser, launch.url, arguments.shots, launch.log)
            for name, scene in SCENES.items():
                if arguments.scenes in name:
                    failed += not _passes(name, lambda scene=scene: scene(page))  # type: ignore[misc]
            failed += not _passes("no error of the page", page.check_errors)
            browser.close()
    finally:
        stop(launch.webui, launch.port)
    print(f"{failed} failed")
    return 1 if failed else 0


def _passes(name: str, scene: object) -> bool:
    began = time.monotonic()
    try:
        scene()  # type: ignore[operator]
    except (AssertionError, Error):
        print(f"{name:44} FAILED\n{traceback.format_exc(limit=-3)}", flush=True)
        return False
    print(f"{name:44} ok  {time.monotonic() - began:5.1f} s", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
