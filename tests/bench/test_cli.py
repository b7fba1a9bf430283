"""The command: what it refuses, what it prints, what it writes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from lib_accel.bench import cli
from lib_accel.bench.cli import main, summary
from lib_accel.bench.suites import FULL, QUICK, SUITES, Case, Effort

BRIEF = Effort(pairs=1, steps=2, compared_steps=2, switches=1, counts=(0, 1))
FEW = (Case("text to image", quick=True), Case("VAE decode", task="vae decode", quick=True))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command writes for two cases."""
    file = tmp_path_factory.mktemp("bench") / "figures.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "QUICK", BRIEF)
        patch.setitem(SUITES, "cpu", (*FEW, Case("left out")))
        assert main(["--quick", "--json", str(file)]) == 0
    result: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return result


def _case(name: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "ratio_low95": 1.0, "difference": {"rel_l2": 1e-6}} | changes


def test_the_file_has_exactly_the_parts_that_it_should(written: dict[str, Any]) -> None:
    assert list(written) == ["cases", "lora", "equality", "never_slower", "environment"]


def test_the_short_run_leaves_cases_out(written: dict[str, Any]) -> None:
    assert [case["name"] for case in written["cases"]] == [case.name for case in FEW]


def test_the_file_says_which_codes_were_measured(written: dict[str, Any]) -> None:
    assert written["environment"]["codes"] == {"measured": ["auto"], "same_as_auto": ["direct"]}


def test_the_file_says_how_much_was_measured(written: dict[str, Any]) -> None:
    about = written["environment"]
    assert (about["suite"], about["pairs"], about["compared_steps"]) == ("cpu", 1, 2)


def test_only_pictures_latents_count_for_equality(written: dict[str, Any]) -> None:
    assert list(written["equality"]["latents_rel_l2"]) == ["text to image"]


def test_the_summary_judges_every_case() -> None:
    report = summary([_case("a"), _case("b", ratio_low95=0.9)], {}, sampled=["a"])
    assert report["never_slower"]["slower"] == ["b"]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--suite", "tpu"], "invalid choice: 'tpu'"),
        (["--threads", "0"], "--threads: got 0, expected 1 or more"),
        (["--threads", "two"], "invalid int value: 'two'"),
        (["--loud"], "unrecognized arguments: --loud"),
        (["--json", "."], "--json: cannot write ."),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(
    argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    line = capsys.readouterr().err
    assert told in line
    assert line.count("\n") == 1


def test_torch_has_the_threads_that_were_asked_for_and_then_its_own_again() -> None:
    with cli._threads(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 1


def test_names_of_cases_are_unique() -> None:
    names = [case.name for case in SUITES["cpu"]]
    assert len(set(names)) == len(names)


def test_a_full_run_has_enough_pairs_and_steps_for_its_claims() -> None:
    assert (FULL.pairs >= 15, FULL.compared_steps, FULL.counts) == (True, 20, (0, 1, 4, 16))


def test_the_short_run_knows_a_case_of_each_kind() -> None:
    quick = [case for case in SUITES["cpu"] if case.quick]
    assert {bool(case.networks) for case in quick} == {bool(case.controls) for case in quick} == {True, False}
    assert QUICK.pairs == 3


def test_help_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "--quick" in capsys.readouterr().out


@pytest.mark.slow
def test_the_short_run_works_as_it_is() -> None:
    assert main(["--quick"]) == 0
