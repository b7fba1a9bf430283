"""The webui's page as a user has it: fields, buttons, tabs, pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Locator, expect

_WIDE = {"width": 1440, "height": 900}
_PATIENCE_MS = 120_000


class Page:
    """One page; `main` is playwright's."""

    def __init__(self, browser: Browser, url: str, shots: Path, log: Path):
        self._browser, self._url, self._shots, self._log = browser, url, shots, log
        self.errors: list[str] = []
        self.main: Any = None
        self.open()

    def open(self, *, theme: str = "light") -> None:
        """Load the page anew."""
        if self.main is not None:
            self.main.close()
        self.main = self._browser.new_page(viewport=_WIDE)
        self.main.set_default_timeout(_PATIENCE_MS)
        self.main.on("pageerror", lambda error: self.errors.append(error.stack or str(error)))
        self.main.goto(f"{self._url}/?__theme={theme}")
        expect(self.at("txt2img_generate")).to_be_visible(timeout=_PATIENCE_MS)
        self.main.wait_for_timeout(1500)  # the webui fills fields from its settings

    def at(self, name: str) -> Locator:
        """The element with this id; gradio gives the id of a text to two, one in the other."""
        found: Locator = self.main.locator(f"#{name}").first
        return found

    def tab(self, title: str) -> None:
        """Turn to a tab."""
        self.main.locator("#tabs > .tab-nav > button", has_text=title).first.click()

    def fill(self, name: str, value: str) -> None:
        """Write into the field, or the number of the slider, with this id."""
        field = self.at(name).locator("textarea, input[type=number], input[type=text]").first
        field.fill(value)
        field.blur()

    def press(self, name: str) -> None:
        """Press the button with this id."""
        self.at(name).click()

    def generate(self, *, steps: int = 6, tab: str = "txt2img") -> None:
        """Draw a small picture and wait for it."""
        for field, value in (("width", "128"), ("height", "128"), ("steps", str(steps))):
            self.fill(f"{tab}_{field}", value)
        self.press(f"{tab}_generate")
        expect(self.at(f"{tab}_interrupt")).to_be_visible(timeout=_PATIENCE_MS)
        expect(self.at(f"{tab}_interrupt")).to_be_hidden(timeout=_PATIENCE_MS)
        self.main.wait_for_timeout(1500)  # the line is asked for when the picture is there

    def line(self, tab: str = "txt2img") -> str:
        """What the accordion's status line says."""
        return self.at(f"accel_{tab}_status").inner_text().strip()

    def shot(self, name: str, element: Locator | None = None) -> None:
        """A screenshot of the whole page, or of an element."""
        path = self._shots / f"{name}.png"
        if element is None:
            self.main.screenshot(path=path, full_page=True)
        else:
            element.screenshot(path=path)

    def check_errors(self) -> None:
        """No script of ours failed, and no traceback of ours is in the server's log.

        Gradio's own scripts do fail in a webui without extensions, at each picture.
        """
        ours = [error for error in self.errors if "accel.js" in error]
        assert not ours, ours
        assert "lib_accel" not in "".join(self._log.read_text(errors="replace").split("Traceback")[1:])
