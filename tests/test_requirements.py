"""What is asked for in several files is the same in all of them, and exact where it is installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lib_accel import requirements
from lib_accel.requirements import OLDEST, installed_version, is_older, why_not

ROOT = Path(__file__).resolve().parent.parent

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
FILES = ("requirements.txt", "requirements-dev.txt", "requirements-dev-nodeps.txt")

_PIN = re.compile(r'([\w-]+)==(\d[\w.]*)(?:; (?:python_version (<|>=) "3\.11"|sys_platform == "linux"))?')


def _lines(name: str) -> list[str]:
    """What a requirement file asks for, without comments and other files."""
    lines = (line.partition("#")[0].strip() for line in ROOT.joinpath(name).read_text("utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("-r ")]


def _pins(name: str, python: str) -> list[tuple[str, str]]:
    """Package and version of what a file installs on a Python."""
    found = [_PIN.fullmatch(line) for line in _lines(name)]
    is_before = is_older(python, "3.11")
    return [(pin[1], pin[2]) for pin in found if pin and pin[3] in (None, "<" if is_before else ">=")]


def _extra() -> dict[str, str]:
    """Package and lower bound of pyproject.toml's extra `diffusers`."""
    text = ROOT.joinpath("pyproject.toml").read_text("utf-8")
    body = re.search(r"^diffusers = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert body
    return dict(re.findall(r'"([\w-]+)>=([\d.]+)"', body[1]))


@pytest.mark.parametrize("name", FILES)
def test_every_requirement_is_pinned_exactly(name: str) -> None:
    assert [line for line in _lines(name) if not _PIN.fullmatch(line)] == []


@pytest.mark.parametrize("python", PYTHONS)
def test_each_python_gets_one_version_of_each_package(python: str) -> None:
    names = sorted(name for file in FILES for name, _ in _pins(file, python))
    assert names == sorted({line.partition("==")[0] for file in FILES for line in _lines(file)})
    assert {"torch", "diffusers", "matplotlib", "pytest", "stable-diffusion-sdkit"} <= set(names)


@pytest.mark.parametrize("python", PYTHONS)
def test_pinned_versions_are_not_older_than_what_was_tried(python: str) -> None:
    pins = dict(_pins("requirements.txt", python))
    assert [name for name, oldest in OLDEST.items() if is_older(pins[name], oldest)] == []


def test_the_tests_have_all_that_use_has() -> None:
    assert "-r requirements.txt" in ROOT.joinpath("requirements-dev.txt").read_text("utf-8").splitlines()


def test_the_extra_asks_for_the_oldest_versions_that_were_tried() -> None:
    assert _extra() == dict(OLDEST)


@pytest.mark.parametrize(
    ("version", "than", "older"),
    [
        ("2.1.2", "2.6", True),
        ("2.13.0+cpu", "2.6", False),
        ("2.13.0", "2.13", False),
        ("2.13", "2.13.0", False),
        ("0.9.9", "0.10", True),
        ("3.0.0rc1", "3.0", False),
    ],
)
def test_versions_are_compared_by_their_numbers(version: str, than: str, older: bool) -> None:
    assert is_older(version, than) is older


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (None, "diffusers is not installed"),
        ("0.29.2", "diffusers 0.29.2 is older than 0.30.3, the oldest that was tried"),
        ("0.30.3", None),
    ],
)
def test_why_not_says_what_is_wrong_with_a_version(version: str | None, reason: str | None) -> None:
    assert why_not("diffusers", version) == reason


def test_any_version_of_what_has_no_oldest_will_do() -> None:
    assert why_not("triton", "0.1") is None


def test_installed_version_is_that_of_the_package() -> None:
    assert installed_version("pytest") == pytest.__version__
    assert installed_version("no-such-package-anywhere") is None


def test_a_module_may_come_from_a_package_of_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "_PACKAGES", {"triton": ("no-such-triton", "pytest")})
    assert installed_version("triton") == pytest.__version__
