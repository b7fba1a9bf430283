"""The suite of LoRAs as a command: what it writes, prints and draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_accel.bench import agreement, switching
from lib_accel.bench.cli import LORA_SIZES, main
from lib_accel.bench.lora_plot import figure, seconds_text, spread, switch_lines
from lib_accel.bench.lora_suite import is_right, summary
from lib_accel.bench.lora_table import lora_table, summary_line
from lib_accel.bench.sizes import SIZES
from lib_accel.bench.switching import BRIEF, Plan

ROWS = (("LoRA", ("kohya", "peft")), ("LoCon with mid", ("kohya",)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the command wrote its file and its picture, with one network and two."""
    folder = tmp_path_factory.mktemp("suite")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "ROWS", ROWS)
        plan = Plan(sizes=("tiny",), counts=(1, 2), rounds=1, slow_rounds=1, picture_steps=2)
        patch.setattr(switching, "BRIEF", plan)
        assert main(["--suite", "lora", "--quick", "--json", str(folder / "lora.json")]) == 0
    return folder


@pytest.fixture(scope="module")
def written(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "lora.json").read_text("utf-8"))
    return result


def test_the_file_has_exactly_the_parts_that_it_should(written: dict[str, Any]) -> None:
    assert list(written) == ["kinds", "flat", "rounding", "switch", "bandwidth", "summary", "environment"]


def test_the_kinds_are_all_right(written: dict[str, Any]) -> None:
    assert [(row["kind"], row["spelling"]) for row in written["kinds"]] == [
        (kind, spelling) for kind, spellings in ROWS for spelling in spellings
    ]
    assert all(is_right(row) for row in written["kinds"])


def test_rounding_once_is_measured_against_attention_and_float32(written: dict[str, Any]) -> None:
    rows = written["rounding"]
    assert [(row["dtype"], row["loras"]) for row in rows] == [
        (dtype, count) for count in (1, 2) for dtype in ("float32", "bfloat16", "float16")
    ]
    for row in rows:
        assert 0 < row["merge"] < 3 * row["attention"]
        assert 0 < row["host_from_float32"] < (1e-5 if row["dtype"] == "float32" else 0.1)


def test_a_size_says_what_it_is_and_has_each_number_of_networks(written: dict[str, Any]) -> None:
    size = written["switch"]["tiny"]
    assert list(size) == ["about", "counts"]
    assert list(size["counts"]) == ["1", "2"]
    about = {key: size["about"][key] for key in ("dtype", "layers", "rank", "file_dtype")}
    assert about == {"dtype": "float32", "layers": 192, "rank": 16, "file_dtype": "float16"}


def test_a_number_of_networks_has_the_sides_and_how_they_were_timed(written: dict[str, Any]) -> None:
    for count in written["switch"]["tiny"]["counts"].values():
        assert list(count) == ["ours", "by layer", "peft", "rounds", "off_restores_bits", "left_out"]


def test_steps_are_the_same_operations_with_any_number(written: dict[str, Any]) -> None:
    assert list(written["flat"]["step_ops"]) == ["0", "1", "2"]
    assert written["flat"]["holds"] is True


def test_fusing_is_compared_with_a_copy_of_the_same_bytes(written: dict[str, Any]) -> None:
    band = written["bandwidth"]["tiny"]
    assert band["bytes"] == 2 * written["switch"]["tiny"]["about"]["weight_bytes"]
    for count in band["counts"].values():
        assert count["ratio"] == pytest.approx(count["fuse_s"] / band["copy_s"])


def test_the_file_says_what_was_called_and_on_what(written: dict[str, Any]) -> None:
    about = written["environment"]
    assert (about["suite"], about["threads"], about["counts"]) == ("lora", 1, [1, 2])
    assert about["calls"]["peft"][-1] == "pipe.fuse_lora(adapter_names=names)"
    assert about["peak_gib"] > 0


def test_the_picture_stands_beside_the_file(folder: Path) -> None:
    with Image.open(folder / "lora.png") as picture:
        assert picture.width > picture.height > 400


def test_the_table_ends_with_one_line_that_sums_up(written: dict[str, Any]) -> None:
    last = lora_table(written).splitlines()[-1]
    assert last.startswith(
        "kinds: 3 right, 0 wrong, 0 refused; steps flat; tiny switch of 1/2: by layer takes"
    )


def test_a_wrong_kind_and_one_that_is_refused_are_named(written: dict[str, Any]) -> None:
    wrong = written["kinds"][0] | {"of_change": 0.01}
    refused = {"kind": "X", "spelling": "peft", "expected": 2, "layers": 0, "refused": "no"}
    found = summary(written | {"kinds": [wrong, refused]})
    assert (found["kinds_wrong"], found["kinds_refused"]) == (["LoRA (kohya)"], ["X (peft)"])
    assert summary_line(found).startswith("kinds: 0 right, 1 wrong, 1 refused")


def test_the_line_tells_what_is_wanted_of_numbers_that_something_is_wanted_of(
    written: dict[str, Any],
) -> None:
    ratios = {"sd15": {count: {"by layer": 6.0, "peft": 7.0} for count in ("1", "4")}}
    line = summary_line(written["summary"] | {"switch_ratio": ratios})
    assert "by layer takes 6.0x/6.0x of ours (at least 1/3.5 wanted); sd15 switch of 1/4: peft" in line


@pytest.mark.parametrize("key", ["layers", "strays", "restored"])
def test_a_kind_is_wrong_for_each_reason(key: str, written: dict[str, Any]) -> None:
    assert not is_right(written["kinds"][0] | {key: {"layers": 1, "strays": 1, "restored": False}[key]})


def test_a_side_that_was_left_out_has_its_reason_in_the_table_and_no_line(written: dict[str, Any]) -> None:
    size = written["switch"]["tiny"]
    bare = {key: value for key, value in size["counts"]["2"].items() if key != "peft"}
    bare["left_out"] = {"peft": "would need 99 GiB"}
    report = written | {"switch": {"tiny": size | {"counts": {"2": bare}}}}
    assert "left out: would need 99 GiB" in lora_table(report)
    assert set(switch_lines(report["switch"]["tiny"])) == {"ours", "by layer"}
    assert len(figure(report).axes) == 1


def test_two_sizes_have_a_field_each(written: dict[str, Any]) -> None:
    size = written["switch"]["tiny"]
    drawn = figure(written | {"switch": {"sd15": size, "sdxl": size}})
    assert [axes.get_title(loc="left").split(",")[0] for axes in drawn.axes] == ["sd15", "sdxl"]


def test_labels_keep_their_order_and_their_distance() -> None:
    placed = spread({"a": 0.9, "b": 0.31, "c": 0.30}, 0.1)
    assert sorted(placed, key=lambda side: placed[side]) == ["c", "b", "a"]
    assert placed["b"] - placed["c"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0123, "12.3 ms"), (0.5, "500 ms"), (0.9999, "1 s"), (1.5, "1.5 s")]
)
def test_a_time_is_told_in_the_unit_that_suits_it(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--size", "tiny"], "--size belongs to --suite lora or graphs; got --suite cpu"),
        (["--rounds", "3"], "--rounds belongs to --suite lora"),
        (["--suite", "lora", "--rounds", "0"], "--rounds: got 0, expected 1 or more"),
        (["--suite", "lora", "--loras", "4", "--loras", "0"], "--loras: got 0, expected 1 or more"),
        (["--plot", "a.png"], "--plot belongs to --suite lora"),
        (["--without-peft"], "--without-peft belongs to --suite lora"),
        (["--suite", "lora", "--size", "flux"], "invalid choice: 'flux'"),
        (["--suite", "lora", "--memory-gib", "0"], "--memory-gib: got 0, expected 1 or more"),
        (["--suite", "lora", "--plot", "."], "--plot: cannot write ."),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(
    argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    assert told in capsys.readouterr().err


def test_the_command_line_knows_all_sizes() -> None:
    assert tuple(SIZES) == LORA_SIZES


def test_a_full_run_has_enough_rounds_for_its_claims() -> None:
    plan = Plan()
    assert (plan.counts, plan.rounds, plan.slow_rounds) == ((1, 4, 16), 5, 3)
    assert BRIEF.sizes == ("tiny",)
