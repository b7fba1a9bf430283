"""The suite of graphs as a command: what it writes and prints, with graphs that are traced only."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lib_accel.bench import graphs_suite
from lib_accel.bench.cli import GRAPHS_SIZES, main
from lib_accel.bench.graphs_models import PACKAGES, WIDTHS
from lib_accel.bench.graphs_rivals import OURS_AUTO, OURS_COMPILED, REPEATED, RIVALS, WHOLE
from lib_accel.bench.graphs_suite import BRIEF, Plan, summary
from lib_accel.bench.graphs_table import graphs_table, summary_line
from tests.bench.graphs import WIDTH, traced_only


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command writes for models of one level; only diffusers' are counted here."""
    file: Path = tmp_path_factory.mktemp("graphs") / "graphs.json"
    made = graphs_suite.graphs_suite

    def traced(plan: Plan, **given: Any) -> dict[str, Any]:
        return made(replace(plan, pairs=1, steps=2), **given, makers=traced_only())

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WIDTHS, "toy", WIDTH)
        patch.setattr(graphs_suite, "PACKAGES", ("diffusers",))
        patch.setattr(graphs_suite, "graphs_suite", traced)
        assert main(["--suite", "graphs", "--quick", "--json", str(file)]) == 0
    result: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return result


def test_the_file_has_exactly_the_parts_that_it_should(written: dict[str, Any]) -> None:
    assert list(written) == ["graphs", "proof", "ways", "summary", "environment"]
    about = written["environment"]
    assert (about["suite"], about["threads"], about["widths"]) == ("graphs", 1, ["toy"])


def test_graphs_of_diffusers_are_counted_over_a_mix_with_loras(written: dict[str, Any]) -> None:
    counted = written["graphs"]["diffusers"]
    assert counted["graphs_after_warmup"] == counted["graphs_after_mix"] == counted["structures"]
    assert counted["not_compiled"] == {}
    assert max(row["rel_l2"] for row in counted["pictures"]) < 1e-5
    assert written["summary"]["flat"] == {"diffusers": True}


def test_each_way_has_its_figures_and_gives_what_stock_gives(written: dict[str, Any]) -> None:
    ways = dict(written["ways"]["toy"]["ways"])
    assert list(ways) == list(RIVALS)
    assert ways.pop(OURS_AUTO) == {"same_as": "ours, direct"}
    assert all(way["rel_l2"] < 1e-5 for way in ways.values())
    assert all(way["ratio"] > 0 for way in ways.values())


def test_ways_differ_in_graphs_and_recompiles(written: dict[str, Any]) -> None:
    ways = written["ways"]["toy"]["ways"]
    assert (ways["ours, direct"]["graphs"], ways["ours, direct"]["compile_s"] < 0.1) == (0, True)
    assert ways[WHOLE]["graphs"] == 1
    assert ways[OURS_COMPILED]["graphs"] > ways[REPEATED]["graphs"] == 1
    assert (ways[OURS_COMPILED]["recompiles"], ways[WHOLE]["recompiles"]) == (0, 1)


def test_our_compiled_blocks_ran_compiled_and_stock_ran_without_us(written: dict[str, Any]) -> None:
    ways = written["ways"]["toy"]["ways"]
    assert ways[OURS_COMPILED]["blocks"]["compiled"] > 0 == ways["ours, direct"]["blocks"]["compiled"]
    assert ways[WHOLE]["blocks"] == {}


def test_the_proof_has_a_choice_and_all_times_of_each_block(written: dict[str, Any]) -> None:
    proof = written["proof"]["toy"]
    assert proof["package"] == "ldm"
    for case in proof["cases"]:
        assert case["choice"] in case["ms"]
        assert case["difference"] <= case["tolerance"]
        assert {"direct", "compiled"} <= case["ms"].keys()
    assert sum(written["summary"]["chosen"]["toy"].values()) == len(proof["cases"])


def test_the_table_has_all_sections_and_ends_with_one_line(written: dict[str, Any]) -> None:
    counters, proof, ways, last = graphs_table(written).split("\n\n")
    assert "diffusers" in counters
    assert proof.startswith("what measuring chooses, ldm's UNet in float32, latents 2x4x8x8")
    assert ways.count("\n") == 1 + len(RIVALS)
    assert last.startswith("graphs over the mix: diffusers flat; toy chosen: ")


def test_what_is_left_out_and_what_is_not_flat_is_said(written: dict[str, Any]) -> None:
    worse = written["graphs"]["diffusers"] | {"graphs_after_mix": 99, "reasons": ["no graph takes 1x2"]}
    report = written | {"graphs": {"diffusers": worse, "sgm": {"left_out": "No module named 'sgm'"}}}
    text = graphs_table(report)
    assert "sgm: left out: No module named 'sgm'" in text
    assert "diffusers: new graph: no graph takes 1x2" in text
    assert summary_line(summary(report)).startswith("graphs over the mix: diffusers NOT FLAT;")


def test_seconds_to_compile_are_compared_where_all_was_compiled_anew(written: dict[str, Any]) -> None:
    assert written["summary"]["compile_s_ratio"] == {}
    cold = written | {"environment": written["environment"] | {"is_cold": True}}
    ratios = summary(cold)["compile_s_ratio"]["toy"]
    assert list(ratios) == [REPEATED, WHOLE]
    assert "toy compiling against ours: compile_repeated_blocks" in summary_line(summary(cold))


def test_a_run_that_was_cut_off_can_be_summed_up(written: dict[str, Any]) -> None:
    ways = {"ours, direct": written["ways"]["toy"]["ways"]["ours, direct"]}
    cut = written | {"ways": {"toy": written["ways"]["toy"] | {"ways": ways}}, "proof": {}}
    cut["environment"] = written["environment"] | {"is_cold": True}
    assert "toy compiling against ours: not measured" in summary_line(summary(cut))


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--size", "sdxl"], "--size: got sdxl with --suite graphs, expected one of tiny, half, sd15"),
        (["--loras", "1"], "--loras belongs to --suite lora; got --suite graphs"),
        (["--rounds", "1"], "--rounds belongs to --suite lora; got --suite graphs"),
        (["--threads", "0"], "--threads: got 0, expected 1 or more"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(
    argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--suite", "graphs", *argv]) == 2
    assert told in capsys.readouterr().err


def test_the_suite_of_loras_refuses_a_size_that_is_not_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--suite", "lora", "--size", "half"]) == 2
    assert "--size: got half with --suite lora, expected one of" in capsys.readouterr().err


def test_the_command_line_knows_all_widths_but_the_toy() -> None:
    assert ("toy", *GRAPHS_SIZES) == tuple(WIDTHS)


def test_a_full_run_has_enough_pairs_and_all_packages() -> None:
    assert (Plan().pairs >= 5, Plan().is_cold, BRIEF.is_cold) == (True, True, False)
    assert PACKAGES == ("ldm", "sgm", "diffusers")


@pytest.mark.slow
def test_the_short_run_works_as_it_is() -> None:
    assert main(["--suite", "graphs", "--quick"]) == 0
