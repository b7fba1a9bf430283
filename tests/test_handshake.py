"""A package whose files changed after it was loaded is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_accel.handshake import digest_of_sources


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    (tmp_path / "one.py").write_text("a = 1\n")
    (tmp_path / "inner" / "two.py").write_text("b = 2\n")
    return tmp_path


def test_the_same_files_give_the_same_digest(package: Path) -> None:
    before = digest_of_sources(package)
    (package / "one.py").write_text("a = 1\n")
    (package / "data.json").write_text("{}")
    assert digest_of_sources(package) == before


@pytest.mark.parametrize("change", ["text", "new", "gone", "moved"])
def test_any_change_of_a_module_is_seen(package: Path, change: str) -> None:
    before, inner = digest_of_sources(package), package / "inner" / "two.py"
    if change == "text":
        inner.write_text("b = 3\n")
    elif change == "new":
        (package / "three.py").touch()
    elif change == "gone":
        inner.unlink()
    else:
        inner.rename(package / "inner" / "four.py")
    assert digest_of_sources(package) != before


def test_without_an_argument_it_is_our_own_package() -> None:
    assert digest_of_sources() == digest_of_sources(Path(__file__).parent.parent / "lib_accel")
