"""What the suite of GPUs tells: the command line, the machine, the table and the picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lib_accel.bench import environment
from lib_accel.bench.cli import main
from lib_accel.bench.environment import gpu_clocks, gpu_environment
from lib_accel.bench.gpu.file import DONE, FAILED
from lib_accel.bench.gpu.parts import (
    AUTO,
    DIRECT,
    DIRECT_GRAPH,
    NEAR,
    OPERATORS,
    PARTS,
    PROFILE,
    SPEED,
    STOCK,
    SWITCH,
    WARM_UP,
)
from lib_accel.bench.gpu.plot import figure, save_plot
from lib_accel.bench.gpu.table import flat_launches, gpu_table

GPU = torch.device("cuda", 0)
ABOUT = {
    "dry_run": False,
    "gpu": "NVIDIA One",
    "power_limit_w": 700.0,
    "driver": "580.1",
    "torch": "2.11.0",
    "floors": {"gpu": "H200"},
}


def _speed(side: str = DIRECT_GRAPH, part: str = "sd15", **values: Any) -> dict[str, Any]:
    row = {
        "part": part,
        "case": "sd15 512, 1 picture",
        "side": side,
        "kind": SPEED,
        "status": DONE,
        "ms": 5.0,
        "stock_ms": 15.0,
        "ratio": 3.0,
        "ratio_low95": 2.9,
        "ratio_high95": 3.1,
        "calls_per_s": 200.0,
        "floor_ms": 2.0,
        "floor_share": 0.4,
        "launches": 12,
        "peak_mib": 3000.4,
        "warmup_s": 1.0,
        "compile_s": 0.0,
        "rel_l2": 1e-4,
        "yardstick": 5e-4,
        "operations_list": "aa",
    }
    return row | values


def _figures(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"environment": ABOUT, "rows": {str(number): row for number, row in enumerate(rows)}}


# The command line


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "--suite gpu needs --part NAME: one of warm-up,"),
        (["--part", "sd16"], "argument --part: invalid choice: 'sd16'"),
        (["--part", "text", "--limit-s", "0"], "--limit-s: got 0, expected 1 or more"),
        (["--part", "text", "--row-s", "0"], "--row-s: got 0, expected 1 or more"),
        (["--part", "text", "--retry"], "--retry needs --json FILE"),
        (["--part", "text", "--loras", "4"], "--loras belongs to --suite lora; got --suite gpu"),
        (["--part", "text", "--json", "."], "--json: cannot write ."),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(
    argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--suite", "gpu", *argv]) == 2
    line = capsys.readouterr().err
    assert told in line
    assert line.count("\n") == 1


def test_flags_of_this_suite_belong_to_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--suite", "cpu", "--part", "text"]) == 2
    assert "--part belongs to --suite gpu" in capsys.readouterr().err


def test_without_a_gpu_the_command_says_so_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--suite", "gpu", "--part", "text"]) == 2
    line = capsys.readouterr().err
    assert "torch sees no NVIDIA GPU; --dry-run" in line
    assert line.count("\n") == 1


_WITHOUT = """
import sys
for name in ("diffusers", "peft", "matplotlib", "xformers"):
    sys.modules[name] = None
from lib_accel.bench.cli import main
sys.exit(main(["--suite", "gpu", "--part", "text", "--dry-run", "--json", sys.argv[1]]))
"""


def test_it_runs_without_diffusers_peft_and_matplotlib(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = subprocess.run([sys.executable, "-c", _WITHOUT, str(file)], capture_output=True, text=True)
    assert (done.returncode, "no picture: " in done.stdout) == (0, True), done.stderr
    rows = json.loads(file.read_text("utf-8"))["rows"].values()
    assert [row["status"] for row in rows] == [DONE] * len(PARTS["text"].rows())


def test_what_is_left_is_said_and_told_by_the_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--suite", "gpu", "--part", "text", "--dry-run", "--json", str(tmp_path / "figures.json")]
    assert main([*argv, "--limit-s", "1"]) == 1
    assert "rows are left: the same command goes on with them" in capsys.readouterr().out
    assert main(argv) == 0
    assert capsys.readouterr().err.startswith("[1/3]")


# The machine


class FakeSmi:
    """Stands for `subprocess.run` of nvidia-smi."""

    def __init__(self, answer: str) -> None:
        self.answer, self.commands = answer, list[list[str]]()

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        return subprocess.CompletedProcess(command, 0, self.answer, "")


@pytest.fixture
def properties(monkeypatch: pytest.MonkeyPatch) -> None:
    told = SimpleNamespace(total_memory=2**30, multi_processor_count=132, major=9, minor=0, uuid="abc-1")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: told)


ANSWER = "580.1.04, 700.00, 700.00, [N/A], 1980, 1980, 3201, 3201, 34, P0\n"


@pytest.mark.usefixtures("properties")
def test_clocks_and_limits_are_asked_and_never_set(monkeypatch: pytest.MonkeyPatch) -> None:
    smi = FakeSmi(ANSWER)
    monkeypatch.setattr(subprocess, "run", smi)
    told = gpu_clocks(GPU)
    assert (told["driver"], told["power_limit_w"], told["clock_mhz"], told["power_w"]) == (
        "580.1.04",
        700.0,
        1980.0,
        None,
    )
    (command,) = smi.commands
    assert command[0] == "nvidia-smi"
    assert [word.split("=")[0] for word in command[1:]] == ["--query-gpu", "--format", "--id"]
    assert command[-1] == "--id=GPU-abc-1"


@pytest.mark.usefixtures("properties")
@pytest.mark.parametrize("answer", ["", "one, two"])
def test_an_answer_of_another_form_is_no_answer(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", FakeSmi(answer))
    assert set(gpu_clocks(GPU).values()) == {None}


@pytest.mark.usefixtures("properties")
def test_without_nvidia_smi_the_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    told = gpu_environment(GPU)
    assert (told["compute_capability"], told["driver"], told["gpu_memory_mib"]) == ("9.0", None, 1024)
    assert {"triton", "cudnn", "cuda", "einops", "xformers"} <= told.keys()


def test_a_cpu_has_neither_clocks_nor_limits() -> None:
    assert gpu_environment(torch.device("cpu")) == gpu_clocks(torch.device("cpu")) == {}
    assert environment._number("P0") == "P0"


# The table


def test_a_row_of_speed_has_its_figures_in_their_units() -> None:
    text = gpu_table(_figures(_speed()))
    machine, _, part, headings, row = text.splitlines()
    assert machine.startswith("NVIDIA One, 700 W, driver 580.1, torch 2.11.0")
    assert (part, headings.split()[:3]) == ("sd15", ["case", "side", "calls/s"])
    values = ["200", "5", "3.000", "2.900-3.100", "40", "%", "12", "3000", "1.0", "0.0", "1.0e-04", "5.0e-04"]
    assert row.split()[-12:] == values


def test_what_is_not_known_is_a_dash_and_what_is_not_done_a_reason() -> None:
    failed = {
        "part": "vae",
        "case": "vae 512",
        "side": DIRECT,
        "status": FAILED,
        "reason": "odd",
        "kind": SPEED,
    }
    text = gpu_table(_figures(_speed(launches=None, peak_mib=None, yardstick="no kernel"), failed))
    assert text.splitlines()[4].split()[-6:-3] == ["-", "-", "1.0"]
    assert text.splitlines()[-1] == f"failed: vae / vae 512 / {DIRECT}: odd"


def test_a_side_that_is_farther_off_than_stocks_attentions_is_named() -> None:
    assert "farther from stock" not in gpu_table(_figures(_speed()))
    text = gpu_table(_figures(_speed(rel_l2=6e-4)))
    assert f"each other: sd15 / sd15 512, 1 picture / {DIRECT_GRAPH}" in text


def test_what_holds_our_side_back_is_told() -> None:
    about = {"reasons": {"a hook is set": 3}, "recorded": {"reasons": {"no memory for its graph": 1}}}
    text = gpu_table(_figures(_speed(about=about)))
    assert "held back: 3 a hook is set, 1 no memory for its graph" in text


def test_lists_of_launches_are_held_against_each_other_by_side() -> None:
    rows = [
        _speed(DIRECT, "loras", case="sd15 512, 0 LoRAs", kernels_list="k"),
        _speed(DIRECT, "loras", case="sd15 512, 16 LoRAs", kernels_list="k", operations_list="bb"),
        _speed(STOCK, "loras", case="sd15 512, 0 LoRAs"),
        _speed(STOCK, "loras", case="sd15 512, 16 LoRAs", operations_list="bb"),
    ]
    assert flat_launches(rows) == {
        DIRECT: (True, ["0 LoRAs", "16 LoRAs"]),
        STOCK: (False, ["0 LoRAs", "16 LoRAs"]),
    }
    text = gpu_table(_figures(*rows))
    assert f"{STOCK}: the launches of a call are DIFFERENT lists with 0 LoRAs, 16 LoRAs" in text


def test_switches_and_profiles_have_sections_of_their_own() -> None:
    switch = _speed("switch", "switches", kind=SWITCH, off_ms=1.0, restores_bits=False)
    profile = {
        "part": "profile",
        "case": "vae 1024",
        "side": STOCK,
        "kind": PROFILE,
        "status": DONE,
        "kernels": 40,
        "kernels_ms": 12.5,
        "outside_ms": 2.5,
        "largest": [{"kernel": "gemm", "launches": 3, "ms": 6.0, "share": 0.48}],
        "roofline": [{"operation": "aten.mm", "calls": 3, "ms": 6.0, "floor_ms": 3.0, "floor_share": 0.5}],
    }
    text = gpu_table(_figures(switch, profile))
    assert "weights after the LoRAs are off: OTHER bits" in text
    assert f"vae 1024, {STOCK}: 40 kernels, 12.5 ms a call, 2.5 of them of no operation" in text
    assert ["aten.mm", "3", "6", "3", "50", "%"] in [line.split() for line in text.splitlines()]


OPERATOR = {
    "operator": "attention",
    "winner": "flash",
    "implementations": {"torch": 15.0, "flash": 5.0},
    "out": {"cudnn": "ValueError: no kernel"},
    "plain_floor_share": 0.13,
    "floor_share": 0.4,
}
AT_OTHERS = [
    {"size": "2x3840x320", "winner": "cudnn", "ms": 1.9, "taken_ms": 2.0, "share": 0.95},
    {"size": "2x3776x320", "winner": "flash", "ms": 2.1, "taken_ms": 2.1, "share": 1.0},
    {"size": "2x3520x320", "winner": "torch", "ms": 1.0, "taken_ms": None, "share": None},
]
TUNED = {
    "operators": {
        "sizes": 9,
        "taken": 5,
        "by_operator": {"attention": 3, "layer norm": 2},
        "pending": 0,
        "fault": None,
    },
    "formats": {"model": "last: its residual blocks take 1.00 ms channels first, 0.80 ms channels last"},
}


def _lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_an_operator_has_its_winner_its_floor_and_what_was_out() -> None:
    text = gpu_table(_figures(_speed("contest", "operators", kind=OPERATORS, **OPERATOR)))
    line = ["15", "5", "3.00", "flash", "2", "40", "%", "13", "%", "1", "1"]
    assert line in [each[-len(line) :] for each in _lines(text)]
    assert "out 1 times: attention, cudnn: ValueError: no kernel" in text
    assert "nothing but plain torch" not in text


def test_sizes_without_a_rival_are_told_as_such() -> None:
    alone = OPERATOR | {"winner": "torch", "implementations": {"torch": 5.0}, "out": {}}
    text = gpu_table(_figures(_speed("contest", "operators", kind=OPERATORS, **alone)))
    assert "at 1 sizes nothing but plain torch takes the arguments here" in text


def test_sizes_that_nobody_tuned_have_a_share_and_the_least_is_named() -> None:
    others = [{**each, "implementations": {"torch": 1.0, "flash": 1.0}} for each in AT_OTHERS]
    text = gpu_table(_figures(_speed("near", "operators-near", kind=NEAR, **OPERATOR, others=others)))
    lines = [line[-8:] for line in _lines(text)]
    assert ["flash", "2x3840x320", "cudnn", "1.9", "2", "95.0", "%", "yes"] in lines
    assert ["flash", "2x3520x320", "torch", "1", "-", "-", "no"] in [line[-7:] for line in lines]
    assert "with 95 % of the tuned speed: attention 2 of 3 sizes" in text
    assert "least share at sizes that nobody tuned: 95 %" in text
    assert "1 sizes do not take what won at the tuned one" in text


def test_what_is_tuned_is_told_with_the_memory_format() -> None:
    text = gpu_table(_figures(_speed(AUTO, about=TUNED)))
    line = next(line for line in text.splitlines() if "another than plain torch" in line)
    assert line.startswith(f"sd15 / sd15 512, 1 picture / {AUTO}: 5 of 9 sizes of operators take")
    assert "(3 attention, 2 layer norm); model: channels last: its residual blocks take 1.00 ms" in line


def test_where_nothing_is_tuned_nothing_is_told_of_it() -> None:
    none = TUNED | {"operators": {**TUNED["operators"], "sizes": 0, "taken": 0, "by_operator": {}}}
    assert "sizes of operators" not in gpu_table(_figures(_speed(AUTO, about=none)))


def test_why_nothing_could_be_measured_is_told() -> None:
    fault = {"sizes": 2, "taken": 0, "by_operator": {}, "pending": 2, "fault": "no process"}
    text = gpu_table(_figures(_speed(AUTO, about=TUNED | {"operators": fault})))
    assert "2 are not measured yet; nothing is measured: no process" in text


def test_warming_up_has_its_seconds_and_what_is_taken_since() -> None:
    told = _speed(AUTO, "warm-up", kind=WARM_UP, measure_s=80.25, about=TUNED)
    assert ["80.2", "1.0", "9", "5"] in [each[-4:] for each in _lines(gpu_table(_figures(told)))]


# The picture


def _texts(drawn: Any) -> list[str]:
    (axes,) = drawn.axes
    return [each.get_text() for each in axes.texts]


def test_the_picture_has_a_bar_a_side_and_the_floor_of_the_case() -> None:
    drawn: Any = figure(_figures(_speed(STOCK, ratio=1.0, ms=15.0), _speed()))
    (axes,) = drawn.axes
    assert [bar.get_width() for bar in axes.patches] == [1.0, 3.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [STOCK, DIRECT_GRAPH]
    assert {"3.00x  200/s", "floor", "sd15: sd15 512, 1 picture"} <= set(_texts(drawn))
    assert 7.5 in [line.get_xdata()[0] for line in axes.lines]


def test_a_floor_that_is_far_away_is_told_in_words() -> None:
    assert "floor at 150x ▸" in _texts(figure(_figures(_speed(floor_ms=0.1))))


def test_without_a_speed_there_is_no_picture(tmp_path: Path) -> None:
    file = tmp_path / "none.png"
    assert not save_plot(_figures(), file)
    assert not file.exists()
