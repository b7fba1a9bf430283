"""The tab's page: it has all that the status says, words where there is nothing, and escapes everything."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from lib_accel.ui.page import page

_REASON = "attention of ip-adapter has a forward of its own"
_HOSTILE = '<img src=x onerror="alert(1)">\'&'


def _status(**changes: Any) -> dict[str, Any]:
    case = {"block": "ResBlock 320", "size": "2x320x64x64", "dtype": "float16", "device": "cuda:0"}
    case |= {"code": "direct", "next_code": "compiled", "reason": "not proved", "difference": 1e-7}
    case |= {"tolerance": 2e-6, "ms": {"direct": 1.23, "compiled": 0.91, "host": 1.44}}
    case["ms"]["compiled with kernels"] = 0.78
    operator = {"operator": "gated linear", "size": "2x4096x320, 2560x320", "dtype": "bfloat16"}
    operator |= {"device": "cuda:1", "chosen": "torch", "next_chosen": "Triton, Tile(high=64)"}
    operator |= {"reason": "31 % less time than torch", "difference": 3e-4, "tolerance": 4e-3}
    operator |= {"ms": {"torch": 0.412, "Triton, Tile(high=64)": 0.283}}
    lies = {"model": "VAE", "is_channels_last": True, "reason": "9.00 ms channels first", "ms": {}}
    picture = {
        "ended": "18:31:07",
        "width": 512,
        "height": 768,
        "batch_size": 3,
        "steps": 20,
        "seconds": 1.52,
    }
    picture |= {"its_per_s": 13.2, "networks": 2, "control_models": 4, "fast": 450, "total": 900}
    picture |= {"fuse_s": 0.031, "is_accelerated": True, "ratio": 1.62, "largest_difference": 7}
    row = {"loras": 16, "stock_ms": 192.0, "ours_ms": 57.6, "ratio": 3.33, "low": 3.31, "high": 3.35}
    task = {"name": "warm-up", "stage": "compiling: 12 left", "done": 0.35, "elapsed_s": 65, "left_s": 20.0}
    blocks = {"direct": 28, "compiled": 0, "host": 16}
    slow = {"blocks": blocks, "reasons": {_REASON: 16}}
    return {
        "version": "0.4.0",
        "enabled": True,
        "stand_aside": [],
        "summary": "UNet: 28 of 44 blocks fast",
        "models": [{"name": "UNet", **slow}, {"name": "ControlNet canny", **slow}],
        "generation": {**slow, "model_calls": 41, "fuse_s": 0.033, "load_s": 0.007, "networks": 5},
        "graphs": {"structures": 17, "graphs": 19, "compile_s": 76.1, "pending": 6, "making": "GEGLU"}
        | {"recompiles": 8, "reasons": ["a guard failed"], "cases": [case]},
        "launches": {"graphs": 27, "mib": 311.4, "captures": 31, "replays": 1904, "evicted": 4}
        | {"capture_s": 2.6, "reasons": {"its weights move between pictures": 13}},
        "tuning": {"cases": [operator], "pending": 5, "holding": "layer norm", "seconds": 66.0}
        | {"fault": "no process could be started", "formats": [lies]},
        "pictures": [picture],
        "networks": [{"name": "style", "unet": 0.8, "text_encoder": 0.25}],
        "memory": [{"what": "LoRA files kept", "mib": 12.0, "limit_mib": 512.0}],
        "cache": {"folder": "/path/accel", "choices": 21, "mib": 0.1},
        "task": task | {"is_running": True, "outcome": "", "error": None},
        "benchmark": {"width": 640, "height": 448, "steps": 9, "device": "cpu", "rows": [row]},
        "advice": {_REASON: "disable that extension"},
        "options": {"enabled": True, "code": "measured"},
    } | changes


def _html(status: dict[str, Any]) -> str:
    return "".join(page(status))


class _Reader(HTMLParser):
    """Keeps tags, attributes and text, and whether each tag that needs it was closed in its turn."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(source)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag not in ("br", "img"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def _hostile(value: Any) -> Any:
    """The same with every text, also every key that is not ours, turned into an attack."""
    if isinstance(value, dict):
        return {_HOSTILE if key == _REASON else key: _hostile(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_hostile(each) for each in value]
    return _HOSTILE if isinstance(value, str) else value


def test_nothing_of_the_status_becomes_a_tag_or_an_attribute() -> None:
    harmless, attacked = _Reader(_html(_status())), _Reader(_html(_hostile(_status())))
    assert "img" not in attacked.tags
    assert set(attacked.attributes) == set(harmless.attributes)
    assert _HOSTILE in attacked.text


def test_text_in_place_of_numbers_does_no_harm() -> None:
    def texts(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: texts(each) for key, each in value.items()}
        if isinstance(value, list):
            return [texts(each) for each in value]
        return _HOSTILE if isinstance(value, int | float) and not isinstance(value, bool) else value

    assert "img" not in _Reader(_html(texts(_status()))).tags


@pytest.mark.parametrize(
    "said",
    [
        *("0.4.0", "28 of 44 blocks fast", "UNet", "canny", "style", "0.8", "0.25"),
        *("18:31:07", "1.52", "13.2", "in 31 ms", "50 %", "1.62x", "7"),
        *("41 calls of models", "merged in 33 ms", "read in 7 ms", "LoRAs: 5"),
        *(
            "27 graphs in 311 MiB",
            "31 captured in 2.6 s",
            "1904 replays",
            "4 dropped for lack of memory",
            "its weights move between pictures",
            "19 graphs for 17 structures",
            "1 min 16 s",
            "8 recompiled",
            "6 to be compiled",
            "GEGLU",
            "a guard failed",
        ),
        *(
            "ResBlock 320",
            "2x320x64x64",
            "float16 cuda:0",
            "not proved",
            "1e-07",
            "2e-06",
            "1.23",
            "0.91",
            "1.44",
        ),
        *("1 measured", "1 faster than torch", "measuring took 1 min 06 s", "5 to be measured"),
        *("measuring layer norm", "no process could be started", "9.00 ms channels first"),
        *("gated linear", "2x4096x320, 2560x320", "bfloat16 cuda:1", "Triton, Tile(high=64)"),
        *("31 % less time than torch", "3e-04", "4e-03", "0.412", "0.283"),
        *("LoRA files kept", "12.0 of 512 MiB", "/path/accel", "21 choices, 0.1 MiB"),
        *("Warm-up", "compiling: 12 left", "35 %", "1 min 05 s", "about 20 s left"),
        *("640 x 448, 9 steps, cpu", "192.0", "57.6", "3.33x", "3.31 to 3.35"),
        *(_REASON, "disable that extension", "Code of the blocks", "measured"),
    ],
)
def test_the_page_says_what_the_status_says(said: str) -> None:
    assert said in _Reader(_html(_status())).text


@pytest.mark.parametrize(
    "words",
    [
        *(
            "no status",
            "see the log",
            "no model yet",
            "no LoRA merged",
            "no ControlNet loaded",
            "no picture yet",
        ),
        *("nothing is held", "no choice is kept on disk", "nothing is running", "nothing compiled"),
        "nothing measured; only GPUs have other implementations than torch",
        *("no benchmark yet", "no block was measured yet"),
    ],
)
def test_without_a_status_each_part_says_so_in_words(words: str) -> None:
    assert words in _Reader(_html({})).text


@pytest.mark.parametrize("missing", list(_status()))
def test_a_status_that_lacks_a_key_is_shown_all_the_same(missing: str) -> None:
    status = _status()
    del status[missing]
    assert len(_Reader(_html(status)).text) > 500


@pytest.mark.parametrize(
    ("changes", "badge"),
    [
        ({}, "on"),
        ({"enabled": False, "summary": "off"}, "off"),
        (
            {"stand_aside": ["a training runs"], "summary": "standing aside: a training runs"},
            "standing aside",
        ),
    ],
)
def test_the_badge_says_on_off_or_standing_aside(changes: dict[str, Any], badge: str) -> None:
    assert f">{badge}</span>" in page(_status(**changes)).headline


def test_a_reason_to_stand_aside_comes_with_what_to_do() -> None:
    status = _status(stand_aside=["a training runs"], advice={"a training runs": "wait for its end"})
    assert "wait for its end" in page(status).headline


def test_control_models_stand_in_a_card_of_their_own() -> None:
    _, after = page(_status(models=[{"name": "ControlNet canny"}])).models.split("<h3>ControlNets</h3>")
    assert "canny" in after
    assert "no model yet" in page(_status(models=[{"name": "ControlNet canny"}])).models


@pytest.mark.parametrize(
    ("done", "width"),
    [
        (-1, "0.0"),
        (0, "0.0"),
        (0.355, "35.5"),
        (1, "100.0"),
        (7, "100.0"),
        (float("nan"), "0.0"),
        (None, "0.0"),
    ],
)
def test_a_bar_is_never_longer_than_its_frame(done: Any, width: str) -> None:
    shown = page(_status(task={"name": "warm-up", "done": done, "is_running": True})).task
    assert f'style="width:{width}%"' in shown


def test_the_segments_of_a_model_add_up_to_the_whole() -> None:
    blocks = {"direct": 1, "compiled": 1, "host": 2}
    shown = page(_status(models=[{"name": "UNet", "blocks": blocks}])).models
    assert re.findall(r"accel-(\w+)\" style=\"width:([\d.]+)%", shown) == [
        ("direct", "25.0"),
        ("compiled", "25.0"),
        ("host", "50.0"),
    ]


def test_memory_without_a_limit_has_no_bar() -> None:
    shown = page(_status(memory=[{"what": "weights", "mib": 12.34, "limit_mib": None}])).memory
    assert "12.3 MiB" in shown
    assert "progressbar" not in shown


@pytest.mark.parametrize(
    ("ended", "said"),
    [({"outcome": "17 graphs"}, "17 graphs"), ({"error": "out of memory"}, "out of memory"), ({}, "done")],
)
def test_work_that_ended_says_how_and_has_no_bar(ended: dict[str, Any], said: str) -> None:
    shown = page(_status(task={"name": "benchmark", "is_running": False, "elapsed_s": 3} | ended)).task
    assert said in shown
    assert "progressbar" not in shown
    assert "data-running" not in shown


def test_only_running_work_is_marked_for_the_script_to_ask_more_often() -> None:
    assert "data-running" in page(_status()).task
    assert "data-running" not in page(_status(task=None)).task


def test_a_picture_without_the_extension_says_off_in_place_of_fast_blocks() -> None:
    picture = _status()["pictures"][0] | {"is_accelerated": False, "ratio": None}
    assert '<td class="accel-number">off</td>' in page(_status(pictures=[picture])).pictures


@pytest.mark.parametrize(
    "part",
    ["headline", "models", "pictures", "benchmark", "memory", "graphs", "settings", "launches", "tuning"],
)
def test_the_same_status_gives_the_same_page_and_time_changes_only_the_task(part: str) -> None:
    later = _status(task=_status()["task"] | {"elapsed_s": 66, "done": 0.4})
    assert getattr(page(_status()), part) == getattr(page(later), part)


def test_tables_that_open_are_closed_at_first_and_have_a_name_to_be_opened_by() -> None:
    shown = page(_status())
    assert '<details id="accel_cases">' in shown.graphs
    assert '<details id="accel_operators">' in shown.tuning
    assert '<details id="accel_options">' in shown.settings
