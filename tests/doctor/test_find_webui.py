"""Which folder is a webui, and what is in it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lib_accel.doctor.facts import Webui
from lib_accel.doctor.webui import find_webui


@pytest.fixture
def webui(tmp_path: Path) -> Path:
    root = tmp_path / "webui"
    (root / "modules").mkdir(parents=True)
    (root / "extensions").mkdir()
    (root / "launch.py").touch()
    (root / "modules" / "processing.py").touch()
    return root


@pytest.fixture
def us(tmp_path: Path) -> Path:
    """This extension's folder, outside the webui."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


def test_nothing_named_and_nothing_around_is_nothing(us: Path) -> None:
    assert find_webui(None, None, us) == Webui()


def test_the_argument_comes_before_the_variable(webui: Path, us: Path) -> None:
    assert find_webui(str(webui), "/nowhere", us).found_by == "--webui"


def test_the_variable_comes_before_what_is_around_us(webui: Path) -> None:
    found = find_webui(None, "/nowhere", webui / "extensions" / "accel")
    assert found == Webui("the variable SD_WEBUI_ROOT", ("launch.py", "modules/processing.py"))


def test_a_webui_is_known_from_inside_its_extensions(webui: Path) -> None:
    inside = webui / "extensions" / "accel"
    inside.mkdir()
    found = find_webui(None, None, inside)
    assert (found.found_by, found.lacks, found.has_us) == ("this folder", (), True)


def test_a_folder_named_extensions_alone_is_no_webui(tmp_path: Path) -> None:
    assert find_webui(None, None, tmp_path / "extensions" / "accel").found_by is None


def test_we_are_in_it_through_a_link_too(webui: Path, us: Path) -> None:
    assert not find_webui(str(webui), None, us).has_us
    (webui / "extensions" / "accel").symlink_to(us)
    assert find_webui(str(webui), None, us).has_us
    assert find_webui(None, None, webui / "extensions" / "accel").has_us


def test_version_is_read_from_the_change_log(webui: Path, us: Path) -> None:
    (webui / "CHANGELOG.md").write_text("## 1.10.1\n\n### Bug Fixes:\n")
    assert find_webui(str(webui), None, us).version == "1.10.1"


def test_version_is_read_from_the_tag_where_there_is_no_change_log(webui: Path, us: Path) -> None:
    name = ("-c", "user.name=a", "-c", "user.email=b")
    for words in (["init", "-q"], [*name, "commit", "-q", "--allow-empty", "-m", "c"], ["tag", "v1.9.4"]):
        subprocess.run(["git", "-C", webui, *words], check=True)
    assert find_webui(str(webui), None, us).version == "1.9.4"


def test_version_is_unknown_where_nothing_says_it(webui: Path, us: Path) -> None:
    (webui / "CHANGELOG.md").write_text("nothing\n")
    assert find_webui(str(webui), None, us).version is None


def test_controlnet_and_forge_are_seen(webui: Path, us: Path) -> None:
    scripts = webui / "extensions" / "sd-webui-controlnet" / "scripts"
    scripts.mkdir(parents=True)
    (scripts / "controlnet.py").touch()
    (webui / "modules_forge").mkdir()
    found = find_webui(str(webui), None, us)
    assert (found.has_controlnet, found.is_forge) == (True, True)
