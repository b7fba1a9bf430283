"""From "Install from URL" to the first picture, and back: `python -m tests.host.browser.install`.

In a webui without this extension, a user installs it in the page, restarts the UI there, and draws. Then the
folder is deleted. Told are seconds and clicks, and what has changed in the environment and in the webui's
folder. Exit status 1 if a package or a file of the webui changed, or if the picture did not run fast.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from ..kit import make_clip
from ..kit.start import Launch, answers, start
from ..kit.stop import stop
from ..pair import Place, end_servers_when_terminated
from ..row import Group
from .__main__ import FLAGS, parser
from .page import Page

_PATIENCE_S = 60.0
_OWN = ("tmp", "__pycache__", ".git")  # folders of a webui that it writes into by itself


def main() -> int:
    """Install, draw, uninstall, compare."""
    options = parser((__doc__ or "").split("\n")[0])
    options.add_argument(
        "--url", required=True, help="what to install, for example a clone of this repository"
    )
    options.add_argument("--json", type=Path, help="write what was found into this file too")
    arguments = options.parse_args()
    end_servers_when_terminated()
    place = Place.make(arguments.webui, arguments.venv, arguments.port, accel=True)
    make_clip.write(place.hf_home)
    place.make_models({"tiny"})
    launch = place.launch(Group("install", (), ui=True), ours=False)
    launch = replace(launch, extensions={}, flags=("--enable-insecure-extension-access",))
    before = _surroundings(launch)
    try:
        start(launch)
        found = _installed_and_drawn(launch, arguments.url, arguments.chromium)
    finally:
        stop(launch.webui, launch.port)
        shutil.rmtree(launch.data)  # all that was installed, and what the webui kept of it
    after = _surroundings(launch)
    found["changed"] = sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if found["changed"] or "blocks fast" not in str(found["line"]) else 0


def _installed_and_drawn(launch: Launch, url: str, chromium: str | None) -> dict[str, object]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = Page(browser, launch.url, launch.data, launch.log)
        page.generate()
        began = time.monotonic()
        page.tab("Extensions")
        _extensions_tab(page, "Install from URL")
        page.main.get_by_label("URL for extension's git repository").fill(url)
        page.main.get_by_role("button", name="Install", exact=True).click()
        expect(page.main.locator("#tab_extensions")).to_contain_text("Installed into", timeout=60_000)
        _extensions_tab(page, "Installed")
        page.main.get_by_role("button", name=re.compile("^Apply and (restart UI|quit)$")).click()
        _start_again(launch)
        page.open()
        restarted = time.monotonic()
        page.generate()
        found = {
            "clicks": 6,  # a tab, a tab, Install, a tab, Apply and restart, Generate
            "seconds_to_restarted": round(restarted - began, 1),
            "seconds_to_picture": round(time.monotonic() - began, 1),
            "line": page.line(),
        }
        browser.close()
    return found


def _extensions_tab(page: Page, title: str) -> None:
    page.main.locator("#tabs_extensions > .tab-nav > button", has_text=title).first.click()


def _start_again(launch: Launch) -> None:
    """As webui.sh does when the webui has ended to be restarted."""
    deadline = time.monotonic() + _PATIENCE_S
    while answers(launch.url) and time.monotonic() < deadline:
        time.sleep(0.2)
    stop(launch.webui, launch.port)
    installed = launch.data / "installed"  # a start clears the folder of extensions
    shutil.rmtree(installed, ignore_errors=True)
    (launch.data / "extensions").rename(installed)
    start(replace(launch, extensions={folder.name: folder for folder in installed.iterdir()}))


def _surroundings(launch: Launch) -> dict[str, str]:
    """Packages with their versions, and files of the webui with what is in them."""
    python = launch.venv / "bin" / "python"
    frozen = subprocess.run([python, "-m", "pip", "freeze"], capture_output=True, text=True, check=False)
    packages = dict.fromkeys(frozen.stdout.splitlines(), "installed")
    folders = [launch.webui / "modules", launch.webui / "extensions", launch.webui / "scripts"]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    files += [file for file in launch.webui.iterdir() if file.is_file()]
    kept = (file for file in files if not set(_OWN) & set(file.relative_to(launch.webui).parts))
    return packages | {str(file.relative_to(launch.webui)): _digest(file) for file in kept}


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
