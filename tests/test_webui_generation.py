"""What the extension does around a generation in the webui: writes it down, compares it, names itself."""

from __future__ import annotations

import gc
import logging
import sys
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from tests.fakes.webui_processing import FakeRequest, FakeResult


class Runner:
    """modules.scripts.ScriptRunner with our script, which swallows what a script raises."""

    def __init__(self, extension: Any, *args: bool) -> None:
        self._script, self._args = extension.AccelScript(), args
        self.alwayson_scripts: list[Any] = [self._script]
        self.errors: list[Exception] = []

    def __getattr__(self, hook: str) -> Any:
        def call(request: FakeRequest, *more: Any) -> None:
            try:
                getattr(self._script, hook)(request, *more, *self._args)
            except Exception as error:
                self.errors.append(error)

        return call


def _generate(fakes: SimpleNamespace, extension: Any, request: FakeRequest, *args: bool) -> FakeResult:
    """As a click on Generate does; `args` are those of the accordion."""
    others = getattr(request.scripts, "alwayson_scripts", [])
    request.scripts = runner = Runner(extension, *args)
    runner.alwayson_scripts += others
    result: FakeResult = fakes.processing.process_images(request)
    assert runner.errors == []
    return result


def _pictures(extension: Any) -> list[dict[str, Any]]:
    pictures: list[dict[str, Any]] = extension._operations.status()["pictures"]
    return pictures


def test_a_generation_is_written_down(fakes: SimpleNamespace, extension: Any) -> None:
    _generate(fakes, extension, FakeRequest(width=128, steps=9, batch_size=2), True, False)
    (picture,) = _pictures(extension)
    expected = {
        "width": 128,
        "height": 64,
        "steps": 9,
        "batch_size": 2,
        "is_accelerated": True,
        "ratio": None,
    }
    assert {name: picture[name] for name in expected} == expected
    assert picture["step_ms"] is not None


def test_a_generation_without_us_is_written_down_too(fakes: SimpleNamespace, extension: Any) -> None:
    _generate(fakes, extension, FakeRequest(), False, False)
    assert [picture["is_accelerated"] for picture in _pictures(extension)] == [False]


def test_a_generation_inside_another_is_not_written_down(fakes: SimpleNamespace, extension: Any) -> None:
    outer, script = FakeRequest(steps=7), extension.AccelScript()
    script.before_process(outer, True, False)
    _generate(fakes, extension, FakeRequest(steps=5), True, False)
    script.postprocess(outer, FakeResult([]), True, False)
    assert [picture["steps"] for picture in _pictures(extension)] == [7]


def test_control_units_are_counted(fakes: SimpleNamespace, extension: Any) -> None:
    unit_script = type("Script", (), {"__module__": "controlnet.py", "enabled_units": [1, 2]})()
    scripts = SimpleNamespace(alwayson_scripts=[object(), unit_script])
    _generate(fakes, extension, FakeRequest(scripts=scripts), True, False)
    assert _pictures(extension)[0]["control_models"] == 2


def test_a_generation_says_one_line(
    fakes: SimpleNamespace, extension: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger=extension._console.name):
        _generate(fakes, extension, FakeRequest(steps=9), True, True)
    (line,) = (record.getMessage() for record in caplog.records if record.name == extension._console.name)
    assert line.startswith("Accel: 9 steps at ")
    assert line.endswith("waiting for a model")


# Compare with stock


def _compare(fakes: SimpleNamespace, extension: Any, request: FakeRequest) -> FakeResult:
    return _generate(fakes, extension, request, True, True)


def _shade(request: FakeRequest) -> list[Image.Image]:
    """One level brighter where we are off, and random as the state that the request finds."""
    level = 100 + int(not sys.modules["lib_accel.extension"]._host.options().enabled)
    torch.rand(3)
    return [Image.new("RGB", (8, 8), (level,) * 3)] * request.batch_size


def test_a_comparison_shows_both_and_the_difference(fakes: SimpleNamespace, extension: Any) -> None:
    result = _compare(fakes, extension, FakeRequest(paint=_shade))
    assert [image.getpixel((0, 0))[0] for image in result.images] == [100, 101, 20]
    ends = [text.rpartition(": ")[2] for text in result.infotexts[1:]]
    assert ends == ["without acceleration", "difference x20"]
    assert "no pixel differs by more than 1 of 255" in result.comments
    assert "ms/step" in result.comments


def test_equal_pictures_are_called_so(fakes: SimpleNamespace, extension: Any) -> None:
    assert "the pictures are equal" in _compare(fakes, extension, FakeRequest()).comments


def test_a_comparison_draws_without_us_first_and_saves_nothing(
    fakes: SimpleNamespace, extension: Any
) -> None:
    request = FakeRequest(paint=_shade)
    _compare(fakes, extension, request)
    (twin, was_on_before), (own, was_on) = fakes.processing.drawn
    assert (was_on_before, was_on) == (False, True)
    assert (twin.do_not_save_samples, twin.do_not_save_grid, twin.is_closed) == (True, True, True)
    assert own is request
    assert (request.override_settings, fakes.shared.opts.data) == ({}, {})


def test_a_comparison_draws_the_same_seed(fakes: SimpleNamespace, extension: Any) -> None:
    _compare(fakes, extension, FakeRequest(paint=_shade))
    (twin, _), (own, _) = fakes.processing.drawn
    assert twin.seed == own.seed != -1


def test_a_comparison_leaves_the_random_state_as_it_was(fakes: SimpleNamespace, extension: Any) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    script = extension.AccelScript()
    script.before_process(FakeRequest(paint=_shade), True, True)
    assert torch.equal(torch.rand(3), expected)


def test_each_side_encodes_its_own_prompt(fakes: SimpleNamespace, extension: Any) -> None:
    kept = ["a prompt", "what stock made of it"]
    _compare(fakes, extension, FakeRequest(cached_c=kept))
    (twin, _), (own, _) = fakes.processing.drawn
    assert (twin.cached_c, own.cached_c) == ([None, None], kept)


def test_a_comparison_is_remembered_with_the_picture(fakes: SimpleNamespace, extension: Any) -> None:
    _compare(fakes, extension, FakeRequest(paint=_shade, steps=9))
    (picture,) = _pictures(extension)
    assert picture["largest_difference"] == 1
    assert picture["ratio"] > 0


def test_a_batch_is_compared_picture_by_picture(fakes: SimpleNamespace, extension: Any) -> None:
    result = _compare(fakes, extension, FakeRequest(paint=_shade, batch_size=2))
    assert len(result.images) == len(result.infotexts) == 6


@pytest.mark.parametrize("button", ["interrupted", "skipped", "stopping_generation"])
@pytest.mark.parametrize("turn", [1, 2])
def test_a_picture_that_was_cut_short_is_not_compared(
    fakes: SimpleNamespace, extension: Any, button: str, turn: int
) -> None:
    def cut_short(request: FakeRequest) -> list[Image.Image]:
        if len(fakes.processing.drawn) == turn:
            setattr(fakes.shared.state, button, True)
        return _shade(request)

    result = _compare(fakes, extension, FakeRequest(paint=cut_short))
    assert len(result.images) == len(result.infotexts) == 1
    assert _pictures(extension)[0]["largest_difference"] is None


def test_an_interruption_shows_what_stock_has_drawn(fakes: SimpleNamespace, extension: Any) -> None:
    def interrupted(request: FakeRequest) -> list[Image.Image]:
        fakes.shared.state.interrupted = True
        return _shade(request)

    result = _compare(fakes, extension, FakeRequest(paint=interrupted))
    assert [image.getpixel((0, 0))[0] for image in result.images] == [101]
    assert "interrupted while this was drawn without acceleration" in result.comments


@pytest.mark.parametrize("seen", ["setting", "override", "fp8", "script"])
def test_what_cannot_be_compared_is_drawn_once_and_says_why(
    fakes: SimpleNamespace, extension: Any, seen: str
) -> None:
    request = FakeRequest(paint=_shade)
    if seen == "setting":
        fakes.shared.opts.data["accel_enabled"] = False
    elif seen == "override":
        request.override_settings["accel_enabled"] = False
    elif seen == "fp8":
        fakes.devices.fp8 = True
    else:
        request.script_args = (3, True, True)
    _compare(fakes, extension, request)
    assert len(fakes.processing.drawn) == 1
    assert [text.startswith("Accel: not compared, ") for text in request.comments] == [True]


def test_there_is_nothing_to_compare_where_we_are_off(fakes: SimpleNamespace, extension: Any) -> None:
    _generate(fakes, extension, FakeRequest(paint=_shade), False, True)
    assert len(fakes.processing.drawn) == 1


def test_a_picture_comes_out_where_stock_fails(fakes: SimpleNamespace, extension: Any) -> None:
    def failing(request: FakeRequest) -> list[Image.Image]:
        if len(fakes.processing.drawn) == 1:
            raise torch.cuda.OutOfMemoryError("by a test")
        return _shade(request)

    request = FakeRequest(paint=failing)
    assert len(_compare(fakes, extension, request).images) == 1
    assert list(request.comments) == ["Accel: not compared, stock failed: OutOfMemoryError: by a test"]
    assert _pictures(extension)[0]["seconds"] < 100
    assert fakes.shared.state.textinfo is None


def test_a_comparison_leaves_the_progress_as_it_was(fakes: SimpleNamespace, extension: Any) -> None:
    fakes.shared.state.job_count, fakes.shared.state.job_no = 9, 4  # as in a plot of nine cells
    _compare(fakes, extension, FakeRequest(paint=_shade))
    assert (fakes.shared.state.job_count, fakes.shared.state.job_no) == (9, 5)


def test_a_comparison_never_keeps_us_off(fakes: SimpleNamespace, extension: Any) -> None:
    request = FakeRequest(paint=_shade, override_settings_restore_afterwards=False)
    _compare(fakes, extension, request)
    assert extension._host.options().enabled is True


def test_masks_among_the_pictures_are_not_compared(fakes: SimpleNamespace, extension: Any) -> None:
    def masked(request: FakeRequest) -> list[Image.Image]:
        return [each for picture in _shade(request) for each in (picture, Image.new("RGB", (8, 8)))]

    fakes.shared.opts.data["return_mask"] = True
    request = FakeRequest(paint=masked, batch_size=2, mask_for_overlay=Image.new("L", (8, 8)))
    result = _compare(fakes, extension, request)
    assert [image.getpixel((0, 0))[0] for image in result.images[4:]] == [101, 20, 101, 20]
    assert len(result.infotexts) == len(result.images)


def test_a_failed_comparison_ends_the_generation_all_the_same(fakes: SimpleNamespace, extension: Any) -> None:
    script, request = extension.AccelScript(), FakeRequest(paint=_shade)
    script.before_process(request, True, True)
    with pytest.raises(AttributeError):
        script.postprocess(request, None, True, True)
    assert extension._host.begin_generation(FakeRequest())


def test_a_generation_that_raised_is_not_held(fakes: SimpleNamespace, extension: Any) -> None:
    script, request = extension.AccelScript(), FakeRequest(paint=_shade)
    script.before_process(request, False, False)
    script.process(request, False, False)
    seen = weakref.ref(request)
    del request
    gc.collect()
    assert seen() is None
    assert extension._host.options().enabled is True


# What is written into pictures


def test_pictures_name_the_extension_only_when_asked(fakes: SimpleNamespace, extension: Any) -> None:
    request = FakeRequest()
    _generate(fakes, extension, request, True, False)
    assert request.extra_generation_params == {}
    fakes.shared.opts.data["accel_infotext"] = True
    _generate(fakes, extension, request, True, False)
    assert request.extra_generation_params == {"Accel": f"{extension.__version__} auto"}


def test_nothing_in_a_picture_sets_one_of_our_settings(fakes: SimpleNamespace, extension: Any) -> None:
    fakes.script_callbacks.registered["on_ui_settings"]()
    for info in fakes.shared.opts.data_labels.values():
        assert getattr(info, "infotext", None) is None
    assert not hasattr(extension.AccelScript(), "infotext_fields")


# An update without a restart


def test_an_update_without_a_restart_stands_aside(
    fakes: SimpleNamespace, extension: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert extension._status()["stand_aside"] == []
    monkeypatch.setattr(extension, "digest_of_sources", lambda: "of other files")
    extension.register()
    status = extension._status()
    assert "restart the webui" in status["summary"]
    assert list(status["advice"].values()) == ["restart the webui"]


# The tab


def test_the_tab_is_there(fakes: SimpleNamespace, extension: Any) -> None:
    ((_, title, name),) = fakes.script_callbacks.registered["on_ui_tabs"]()
    assert (title, name) == ("Accel", "accel")


def test_frozen_settings_keep_it_on(fakes: SimpleNamespace, extension: Any) -> None:
    fakes.shared.cmd_opts.freeze_settings = True
    assert "--freeze-settings" in extension._turn_off_until_restart()
    assert extension._host.options().enabled is True


def test_off_until_restart_stays_off(fakes: SimpleNamespace, extension: Any) -> None:
    assert "until the webui is restarted" in extension._turn_off_until_restart()
    assert extension._host.options().enabled is False
    with pytest.raises(PermissionError, match="tab Accel"):
        extension._switch(True)


def test_a_page_without_a_status_is_no_error(
    extension: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(extension._operations, "status", lambda: 1 / 0)
    assert extension._status() == {}
    assert "ZeroDivisionError" in caplog.text
