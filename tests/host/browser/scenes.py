"""What a user does with the extension, one scene after the other, and what the page must then show."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from .page import Page

_LONG_MS = 240_000
_SOON_MS = 20_000
_SIZE = {"accel_width": "128", "accel_height": "128"}


def first_picture(page: Page) -> None:
    """The line under the accordion says what happened in the picture."""
    page.fill("txt2img_prompt", "a photo of a cat <lora:tiny_lora_b:0.8>")
    page.generate()
    assert re.search(r"(\d+) of \1 blocks fast · 1 LoRA merged in \d+ ms", page.line()), page.line()


def off_for_one_picture(page: Page) -> None:
    """The accordion's checkbox turns it off for what is drawn then, also by keyboard."""
    switch = page.at("accel_txt2img_enabled-visible-checkbox")
    switch.focus()
    page.main.keyboard.press("Space")
    page.generate()
    assert page.line().endswith("off in the last picture"), page.line()
    switch.focus()
    page.main.keyboard.press("Space")
    page.generate()
    assert "off" not in page.line(), page.line()


def compare(page: Page) -> None:
    """Both pictures and the difference are in the gallery, the times below, the ratio in the line."""
    page.at("accel_txt2img_compare").locator("input").check()
    page.generate(steps=12)
    expect(page.at("txt2img_gallery").locator(".thumbnails .thumbnail-item")).to_have_count(3)
    told = page.at("html_log_txt2img").inner_text()
    assert "no pixel differs by more than 1 " in told or "the pictures are equal" in told, told
    assert re.search(r"ms/step: [\d.]+x", page.at("html_log_txt2img").inner_text())
    assert re.search(r" · [\d.]+x", page.line()), page.line()
    page.shot("compare")
    page.at("accel_txt2img_compare").locator("input").uncheck()


def status(page: Page) -> None:
    """The tab shows models, pictures, LoRAs and memory."""
    page.tab("Accel")
    expect(page.at("accel_headline")).to_contain_text("blocks fast")
    for part, words in (
        ("models", ("UNet", "VAE", "text encoder")),
        ("pictures", ("128", "100 %", "off")),
        ("memory", ("LoRA files kept",)),
    ):
        for word in words:
            expect(page.at(f"accel_{part}")).to_contain_text(word)


def warm_up(page: Page) -> None:
    """A warm-up shows that it runs, and how it ended."""
    page.tab("Accel")
    for name, value in _SIZE.items():
        page.fill(name, value)
    page.press("accel_warm_up")
    expect(page.at("accel_task")).to_contain_text("ready:", timeout=_LONG_MS)


def cancel(page: Page) -> None:
    """A running benchmark shows its progress and the time left, and ends when that is asked for."""
    page.fill("accel_steps", "30")
    page.press("accel_benchmark_start")
    expect(page.at("accel_task")).to_contain_text("left", timeout=_LONG_MS)
    expect(page.at("accel_cancel")).to_be_visible()
    page.shot("progress", page.at("accel_tab"))
    page.press("accel_cancel")
    expect(page.at("accel_task")).to_contain_text("cancelled", timeout=_LONG_MS)
    expect(page.at("accel_cancel")).to_be_hidden()


def benchmark(page: Page) -> None:
    """A benchmark ends in a plot and a table."""
    page.fill("accel_steps", "8")
    page.press("accel_benchmark_start")
    expect(page.at("accel_benchmark").locator("svg")).to_be_visible(timeout=_LONG_MS)
    expect(page.at("accel_benchmark").locator("tbody tr")).to_have_count(3)
    page.main.wait_for_timeout(1000)
    page.shot("tab", page.at("accel_tab"))


def report(page: Page) -> None:
    """The report names versions, and can be copied."""
    page.press("accel_copy")
    expect(page.at("accel_report").locator("textarea")).to_have_value(re.compile("torch: "))


def settings(page: Page) -> None:
    """The settings say what they cost, and count without a restart."""
    page.tab("Settings")
    page.main.locator("#settings > .tab-nav > button", has_text=re.compile("^ *Accel *$")).click()
    expect(page.at("setting_accel_code")).to_be_visible()
    page.main.evaluate("window.scrollTo(0, 0)")
    page.main.wait_for_timeout(500)
    page.shot("settings")
    page.at("setting_accel_infotext").locator("input").check()
    page.press("settings_submit")
    page.main.wait_for_timeout(2000)
    page.tab("txt2img")
    page.generate()
    expect(page.at("html_info_txt2img")).to_contain_text("Accel: ")


def quick_setting(page: Page) -> None:
    """The switch works among the quick settings above the tabs, at once."""
    page.tab("Accel")
    switch = page.at("quicksettings").locator("#setting_accel_enabled input")
    switch.uncheck()
    expect(page.at("accel_headline")).not_to_contain_text("blocks fast", timeout=_SOON_MS)
    switch.check()
    expect(page.at("accel_headline")).to_contain_text("blocks fast", timeout=_SOON_MS)


def dark(page: Page) -> None:
    """The tab in the dark theme, after a reload of the page."""
    page.open(theme="dark")
    page.tab("Accel")
    expect(page.at("accel_headline")).to_contain_text("blocks fast")
    expect(page.at("accel_benchmark").locator("svg")).to_be_visible()
    page.main.wait_for_timeout(1000)
    page.shot("tab-dark", page.at("accel_tab"))


def off_until_restart(page: Page) -> None:
    """It asks once more, and then stays off."""
    page.press("accel_off")
    page.press("accel_off_yes")
    expect(page.at("accel_message")).to_contain_text("off until the webui is restarted")
    expect(page.at("accel_headline")).to_contain_text("off")


SCENES = {
    "first picture": first_picture,
    "off for one picture": off_for_one_picture,
    "compare with stock": compare,
    "status": status,
    "warm-up": warm_up,
    "benchmark cancelled": cancel,
    "benchmark": benchmark,
    "report": report,
    "settings": settings,
    "quick setting": quick_setting,
    "dark theme": dark,
    "off until restart": off_until_restart,
}
