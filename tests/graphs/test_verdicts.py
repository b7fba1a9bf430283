"""What was found out about a block is known at the next start, and a broken file costs only a line of log."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_accel.graphs import verdicts as verdicts_module
from lib_accel.graphs.proof import COMPILED, DIRECT, HOST, Verdict
from lib_accel.graphs.verdicts import Verdicts, default_folder, surroundings

ROOT = Path(__file__).resolve().parents[2]

FOUND = Verdict(COMPILED, "50 % less time than direct", 1e-7, 2e-6, {DIRECT: 2.0, COMPILED: 1.0})
OTHER = Verdict(HOST, "20 % less time than direct", None, 2e-6, {DIRECT: 1.0, HOST: 0.8})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One that is not there yet."""
    return tmp_path / "caches" / "accel"


def file(folder: Path) -> Path:
    return folder / "verdicts.json"


# What is kept


@pytest.mark.parametrize("verdict", [FOUND, OTHER, Verdict(DIRECT, "nothing is faster")])
def test_what_one_process_puts_another_gets(folder: Path, verdict: Verdict) -> None:
    Verdicts(folder).put("a", verdict)
    assert Verdicts(folder).get("a") == verdict


def test_a_name_that_nobody_put_is_unknown(folder: Path) -> None:
    Verdicts(folder).put("a", FOUND)
    assert Verdicts(folder).get("b") is None


def test_the_latest_verdict_counts(folder: Path) -> None:
    verdicts = Verdicts(folder)
    verdicts.put("a", FOUND)
    verdicts.put("a", OTHER)
    assert verdicts.get("a") == Verdicts(folder).get("a") == OTHER


@pytest.mark.parametrize("difference", [math.inf, math.nan])
def test_an_infinite_difference_is_not_kept_but_its_verdict_is(folder: Path, difference: float) -> None:
    Verdicts(folder).put("a", Verdict(DIRECT, "compiled differs", difference, 2e-6))
    assert Verdicts(folder).get("a") == Verdict(DIRECT, "compiled differs", None, 2e-6)
    json.loads(file(folder).read_text(), parse_constant=pytest.fail)


def test_nothing_is_written_before_there_is_something(folder: Path) -> None:
    verdicts = Verdicts(folder)
    assert (verdicts.get("a"), len(verdicts)) == (None, 0)
    assert not folder.exists()


def test_without_a_folder_verdicts_live_as_long_as_the_process() -> None:
    verdicts = Verdicts(None)
    verdicts.put("a", FOUND)
    verdicts.begin_trial("b")
    assert (verdicts.get("a"), verdicts.get("b")) == (FOUND, None)
    assert Verdicts(None).get("a") is None


def test_entries_of_two_processes_are_merged(folder: Path) -> None:
    first, second = Verdicts(folder), Verdicts(folder)
    first.put("a", FOUND)
    assert second.get("b") is None  # has read the file
    first.put("b", FOUND)
    second.put("c", OTHER)
    first.put("d", OTHER)
    third = Verdicts(folder)
    assert [third.get(name) for name in "abcd"] == [FOUND, FOUND, OTHER, OTHER]


def test_clearing_forgets_everything(folder: Path) -> None:
    verdicts = Verdicts(folder)
    verdicts.put("a", FOUND)
    verdicts.put("b", OTHER)
    assert (len(verdicts), verdicts.clear(), len(verdicts)) == (2, 2, 0)
    assert verdicts.get("a") is None
    assert len(Verdicts(folder)) == 0


def test_a_cleared_name_can_be_put_again(folder: Path) -> None:
    verdicts = Verdicts(folder)
    verdicts.put("a", FOUND)
    verdicts.clear()
    verdicts.put("a", OTHER)
    assert Verdicts(folder).get("a") == OTHER


def test_the_oldest_entries_go_when_there_are_too_many(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts_module, "_MOST_ENTRIES", 3)
    for name in "abcde":
        Verdicts(folder).put(name, FOUND)
    kept = Verdicts(folder)
    assert [name for name in "abcde" if kept.get(name)] == ["c", "d", "e"]


def test_no_other_file_is_left(folder: Path) -> None:
    Verdicts(folder).put("a", FOUND)
    assert [path.name for path in folder.iterdir()] == ["verdicts.json"]


# Trials


@pytest.fixture
def others() -> Iterator[subprocess.Popen[bytes]]:
    """Another process, that lives."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def dead_process() -> int:
    """The number of a process that is over."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write(folder: Path, *, schema: int = 1, verdicts: object = None, trials: object = None) -> None:
    """Leaves such a file, as if another process had."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"schema": schema, "verdicts": verdicts or {}, "trials": trials or {}}
    file(folder).write_text(json.dumps(content))


def trying(folder: Path, name: str, process: object, tries: object = 2) -> None:
    """Leaves the file that a process has left that was trying something for so many times."""
    write(folder, trials={name: {"process": process, "tries": tries}})


def trials(folder: Path) -> dict[str, Any]:
    """Those on disk."""
    return json.loads(file(folder).read_text())["trials"]  # type: ignore[no-any-return]


ENDED_TWICE = Verdict(DIRECT, "the program ended twice while this was tried")


def test_what_two_processes_were_trying_when_they_ended_is_direct(folder: Path) -> None:
    trying(folder, "a", dead_process())
    assert Verdicts(folder).get("a") == ENDED_TWICE


@pytest.mark.parametrize("tries", [1, 0, None, "2", True, []])
def test_what_one_process_was_trying_when_it_ended_is_tried_again(folder: Path, tries: object) -> None:
    trying(folder, "a", dead_process(), tries)
    assert Verdicts(folder).get("a") is None


def test_trials_of_two_processes_that_end_are_counted(folder: Path) -> None:
    script = "import os, sys; from lib_accel.graphs.verdicts import *\n"
    script += "Verdicts(Path(sys.argv[1])).begin_trial('a'); os._exit(9)"
    found = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script, str(folder)], cwd=ROOT, check=False)
        found.append(Verdicts(folder).get("a"))
    assert found == [None, ENDED_TWICE]


def test_a_trial_that_ends_well_takes_back_those_that_did_not(folder: Path) -> None:
    trying(folder, "a", dead_process(), 1)
    verdicts = Verdicts(folder)
    verdicts.begin_trial("a")
    assert (trials(folder)["a"]["process"], trials(folder)["a"]["tries"]) == (os.getpid(), 2)
    verdicts.end_trial("a")
    assert trials(folder) == {}


@pytest.mark.skipif(os.name != "posix", reason="elsewhere no process is asked after")
def test_what_a_living_process_tries_is_unknown(folder: Path, others: subprocess.Popen[bytes]) -> None:
    trying(folder, "a", others.pid)
    assert Verdicts(folder).get("a") is None


@pytest.mark.skipif(os.name != "posix", reason="elsewhere no process is asked after")
def test_what_a_process_of_another_user_tries_is_unknown(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(process: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    trying(folder, "a", 1)
    assert Verdicts(folder).get("a") is None


def test_what_this_process_tries_is_unknown_to_all_of_its_engines(folder: Path) -> None:
    for _ in range(3):
        Verdicts(folder).begin_trial("a")
    assert Verdicts(folder).get("a") is None


def test_a_former_process_of_the_same_number_is_over(folder: Path) -> None:
    trying(folder, "a", os.getpid())
    assert Verdicts(folder).get("a") == ENDED_TWICE


@pytest.mark.skipif(os.name != "posix", reason="elsewhere no process is asked after")
def test_a_trial_beside_that_of_a_living_process_is_no_interruption(
    folder: Path, others: subprocess.Popen[bytes]
) -> None:
    trying(folder, "a", others.pid, 1)
    Verdicts(folder).begin_trial("a")
    assert trials(folder)["a"]["tries"] == 1


@pytest.mark.parametrize("process", [None, "1", True])
def test_a_trial_that_no_living_process_can_have_begun_is_over(folder: Path, process: object) -> None:
    trying(folder, "a", process)
    assert Verdicts(folder).get("a") is not None


def test_ones_own_trial_is_unknown_to_oneself(folder: Path) -> None:
    verdicts = Verdicts(folder)
    verdicts.begin_trial("a")
    assert verdicts.get("a") is None


def test_a_trial_is_on_disk_before_it_is_made(folder: Path) -> None:
    Verdicts(folder).begin_trial("a")
    assert (trials(folder)["a"]["process"], trials(folder)["a"]["tries"]) == (os.getpid(), 1)


def test_a_trial_that_another_process_began_is_not_ended(
    folder: Path, others: subprocess.Popen[bytes]
) -> None:
    trying(folder, "a", others.pid)
    Verdicts(folder).end_trial("a")
    assert trials(folder) == {"a": {"process": others.pid, "tries": 2}}


def test_a_trial_that_ends_leaves_nothing(folder: Path) -> None:
    verdicts = Verdicts(folder)
    verdicts.begin_trial("a")
    verdicts.end_trial("a")
    assert (verdicts.get("a"), len(Verdicts(folder))) == (None, 0)


def test_a_verdict_ends_a_trial(folder: Path) -> None:
    verdicts = Verdicts(folder)
    verdicts.begin_trial("a")
    verdicts.put("a", FOUND)
    verdicts.end_trial("a")
    assert verdicts.get("a") == Verdicts(folder).get("a") == FOUND
    assert trials(folder) == {}


def test_a_trial_does_not_hide_what_is_known(folder: Path) -> None:
    verdicts = Verdicts(folder)
    verdicts.put("a", FOUND)
    verdicts.begin_trial("a")
    assert verdicts.get("a") == Verdicts(folder).get("a") == FOUND
    verdicts.end_trial("a")
    assert verdicts.get("a") == Verdicts(folder).get("a") == FOUND


def test_an_interrupted_trial_can_be_settled_by_another_verdict(folder: Path) -> None:
    trying(folder, "a", dead_process())
    verdicts = Verdicts(folder)
    assert verdicts.get("a") != FOUND
    verdicts.put("a", FOUND)
    assert verdicts.get("a") == Verdicts(folder).get("a") == FOUND


def test_an_interrupted_trial_stays_until_the_cache_is_cleared(folder: Path) -> None:
    trying(folder, "a", dead_process())
    Verdicts(folder).put("b", FOUND)
    again = Verdicts(folder)
    assert again.get("a") is not None
    again.clear()
    assert again.get("a") is None
    assert Verdicts(folder).get("a") is None


# Trials in another process than the one that notes them


def test_a_trial_that_is_lost_twice_is_at_the_usual_code(folder: Path) -> None:
    verdicts, found = Verdicts(folder), []
    for _ in range(2):
        verdicts.lose_trial("a")
        found.append(verdicts.get("a", usual="torch"))
    assert found == [None, Verdict("torch", ENDED_TWICE.reason)]


def test_lost_trials_are_counted_from_start_to_start(folder: Path) -> None:
    for _ in range(2):
        Verdicts(folder).lose_trial("a")
    assert Verdicts(folder).get("a") == ENDED_TWICE


def test_a_trial_that_ends_well_takes_back_one_that_was_lost(folder: Path) -> None:
    verdicts = Verdicts(folder)
    verdicts.lose_trial("a")
    verdicts.begin_trial("a")
    verdicts.end_trial("a")
    assert trials(folder) == {}


# Codes of others

TILE = Verdict("tile 64", "9 % less time than torch")


def test_a_code_of_others_is_known_to_who_asks_for_it(folder: Path) -> None:
    Verdicts(folder).put("a", TILE)
    verdicts = Verdicts(folder)
    known = [verdicts.get("a", codes=codes) for codes in (None, ("tile 64",), ("tile 32",))]
    assert [*known, verdicts.get("a")] == [TILE, TILE, None, None]


def test_names_that_begin_alike_are_found_together(folder: Path) -> None:
    for name, verdict in {"x a": TILE, "x b": FOUND, "y c": TILE}.items():
        Verdicts(folder).put(name, verdict)
    assert Verdicts(folder).beginning("x ") == {"x a": TILE, "x b": FOUND}


def test_an_entry_without_a_code_begins_with_nothing(folder: Path) -> None:
    write(folder, verdicts={"x a": {"code": 3}, "x b": {}, "x c": {"code": "torch"}})
    assert list(Verdicts(folder).beginning("x ")) == ["x c"]


# Files that are not as they should be

BROKEN: dict[str, str | bytes] = {
    "no JSON": "{",
    "empty": "",
    "no text": b"\xff\xfe\x00",
    "a list": "[]",
    "a number": "1",
    "no schema": "{}",
    "no verdicts": '{"schema": 1, "trials": {}}',
    "no trials": '{"schema": 1, "verdicts": {"a": {"code": "host"}}}',
    "a list of verdicts": '{"schema": 1, "verdicts": [], "trials": {}}',
    "verdicts that are numbers": '{"schema": 1, "verdicts": {"a": 1}, "trials": {}}',
    "trials that are numbers": '{"schema": 1, "verdicts": {"a": {"code": "host"}}, "trials": {"a": 1}}',
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_costs_a_line_of_log(folder: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    folder.mkdir(parents=True)
    content = BROKEN[name]
    file(folder).write_bytes(content.encode() if isinstance(content, str) else content)
    verdicts = Verdicts(folder)
    assert (verdicts.get("a"), verdicts.get("b")) == (None, None)
    (record,) = caplog.records
    assert (record.levelno, "choices are made anew" in record.message) == (logging.WARNING, True)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_written_anew(folder: Path, name: str) -> None:
    folder.mkdir(parents=True)
    content = BROKEN[name]
    file(folder).write_bytes(content.encode() if isinstance(content, str) else content)
    Verdicts(folder).put("a", FOUND)
    assert Verdicts(folder).get("a") == FOUND


def test_a_file_of_another_version_is_not_read(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(folder, schema=99, verdicts={"a": {"code": "host"}})
    assert Verdicts(folder).get("a") is None
    assert not caplog.records


@pytest.mark.parametrize(
    "entry",
    [{}, {"code": "vulkan"}, {"code": None}, {"code": ["host"]}, {"code": {}}],
    ids=["empty", "unknown", "null", "list", "dict"],
)
def test_an_entry_of_no_known_code_is_unknown(folder: Path, entry: dict[str, Any]) -> None:
    write(folder, verdicts={"a": entry})
    assert Verdicts(folder).get("a") is None


def test_an_entry_says_at_least_which_code(folder: Path) -> None:
    write(folder, verdicts={"a": {"code": "host", "ms": 3}})
    assert Verdicts(folder).get("a") == Verdict(HOST, "")


def a_file_in_its_place(folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("")


def a_folder_in_the_files_place(folder: Path) -> None:
    file(folder).mkdir(parents=True)


@pytest.mark.parametrize("spoil", [a_file_in_its_place, a_folder_in_the_files_place])
def test_what_cannot_be_written_is_kept_in_memory(folder: Path, spoil: Callable[[Path], None]) -> None:
    spoil(folder)
    verdicts = Verdicts(folder)
    verdicts.put("a", FOUND)
    verdicts.begin_trial("b")
    assert (verdicts.get("a"), verdicts.get("b")) == (FOUND, None)


def test_a_full_disk_is_said_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    verdicts = Verdicts(folder)
    for name in "abc":
        verdicts.put(name, FOUND)
    (record,) = caplog.records
    assert "choices are not kept" in record.message
    assert "No space left" in record.message
    assert list(folder.iterdir()) == []


def test_what_could_not_be_written_is_written_with_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(13, "another process reads it")

    verdicts = Verdicts(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        verdicts.put("a", FOUND)
    verdicts.put("b", OTHER)
    again = Verdicts(folder)
    assert (again.get("a"), again.get("b")) == (FOUND, OTHER)


# Where they are, and for what


def test_the_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path))
    assert default_folder() == tmp_path


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ("win32", "local/sd-webui-accel"),
        ("darwin", "home/Library/Caches/sd-webui-accel"),
        ("linux", "xdg/sd-webui-accel"),
    ],
)
def test_the_folder_is_where_a_system_has_its_caches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, platform: str, expected: str
) -> None:
    monkeypatch.delenv("ACCEL_CACHE_DIR", raising=False)
    for name, value in (("LOCALAPPDATA", "local"), ("XDG_CACHE_HOME", "xdg")):
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(sys, "platform", platform)
    assert default_folder() == tmp_path / expected


def test_without_any_word_the_folder_is_in_the_users_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("ACCEL_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    assert default_folder() == tmp_path / ".cache" / "sd-webui-accel"


def test_a_verdict_holds_for_versions_and_threads() -> None:
    text = surroundings(torch.device("cpu"))
    assert f"torch {torch.__version__}" in text
    assert text.endswith(f" {torch.get_num_threads()} threads")


def test_a_precision_that_torch_cannot_tell_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    assert "matmul highest, " in surroundings(torch.device("cpu"))
