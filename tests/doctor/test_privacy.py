"""Nothing that is shown says who and where its writer is."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lib_accel.doctor.checks import examine
from lib_accel.doctor.facts import Package, Webui
from lib_accel.doctor.privacy import Private, private_words
from lib_accel.doctor.report import as_json, as_report, as_table, without_private_words
from tests.doctor.machines import BARE, GOOD, NO_GPU, BrokenMachine

PRIVATE = Private(
    users=("alice",),
    hosts=("alices-box.corp.example", "alices-box"),
    folders=("/home/alice", r"C:\Users\Al Ice", "/data/my models"),
    secrets=("s3cr3t-token",),
)

# What must never be seen, and what every string of a machine gets mixed in.
WORDS = ("alice", "alices-box", "corp.example", "s3cr3t", "my models", "al ice", "hidden")
POISON = (
    "alice at alices-box.corp.example in /home/alice/x, '/data/my models/hidden file.txt', /srv/hidden/y.py, "
    r"C:\Users\Al Ice\z and D:\hidden\w: s3cr3t-token"
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("user alice", "user <user>"),
        ("Alice's and torchinductor_ALICE", "<user>'s and torchinductor_<user>"),
        ("malice and alice2", "malice and alice2"),
        ("alice@alices-box.corp.example", "<user>@<host>"),
        ("on ALICES-BOX", "on <host>"),
        ("token=s3cr3t-token!", "token=<secret>!"),
        ("https://bob:pw@index.example/simple", "https://<login>@index.example/simple"),
        ("hf_abcdefghij", "<secret>"),
        ("at /home/alice/.cache/x.py: no", "at <path>: no"),
        ("at /home/alicette/x", "at <path>"),
        ("'/opt/my files/x y' is", "'<path>' is"),
        ('"/opt/my files/x y" is', '"<path>" is'),
        ("in /data/my models/sd.ckpt", "in <path>"),
        ("/usr/lib/libcuda.so.1: no such file", "<path>/libcuda.so.1: no such file"),
        ("'/home/alice/libalice.so'", "'<path>/libalice.so'"),
        (r"C:\Users\Al Ice\app\torch.dll gone", r"<path>/torch.dll gone"),
        (r"'C:\\Users\\Al Ice\\x'", "'<path>'"),
        (r"\\server\share\x", "<path>"),
        ("file:///srv/x", "<path>"),
        ("-I/srv/include -L/srv/lib --out=/srv/x", "-I<path> -L<path> --out=<path>"),
        ("PATH:/srv/a:/srv/b", "PATH:<path>"),
    ],
)
def test_private_words_become_marks(text: str, shown: str) -> None:
    assert PRIVATE.hide(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "see https://pytorch.org/get-started/locally/",
        "~/.cache/sd-webui-accel can be made",
        "$XDG_CACHE_HOME/sd-webui-accel",
        "yes/no, n/a, 3/4",
        "NVIDIA H100 (capability 9.0, 79.6 GiB)",
        'python -m pip install "diffusers>=0.30.3"',
    ],
)
def test_what_is_not_private_stays(text: str) -> None:
    assert PRIVATE.hide(text) == text


def _poisoned(value: Any) -> Any:
    """The value with POISON in each string and fact inside it."""
    if isinstance(value, str):
        return f"{value} {POISON}"
    if isinstance(value, tuple):
        return tuple(map(_poisoned, value))
    if isinstance(value, dict):
        return {key: _poisoned(each) for key, each in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: _poisoned(getattr(value, each.name)) for each in fields(value)})
    return value


FAULTY = replace(
    GOOD.having(**{name: Package(package.version, "fault") for name, package in GOOD.packages.items()}),
    devices=replace(GOOD.devices, gpus=(), complaint="complaint"),
    webui=Webui("found", lacks=("launch.py",)),
    compiler=replace(GOOD.compiler, fault="fault"),
    cache=replace(GOOD.cache, is_writable=False),
)


@pytest.mark.parametrize("machine", [GOOD, NO_GPU, BARE, FAULTY], ids=["good", "no GPU", "bare", "faulty"])
@pytest.mark.parametrize(
    "show", [as_json, as_report, lambda rows: as_table(rows, 80)], ids=["json", "report", "table"]
)
def test_a_poisoned_machine_shows_no_private_word(machine: Any, show: Any) -> None:
    rows = examine(_poisoned(machine))
    assert any("alices-box" in row.verdict.finding for row in rows)
    shown = show(without_private_words(rows, PRIVATE)).lower()
    assert [word for word in WORDS if word in " ".join(shown.split())] == []


def test_a_crash_shows_no_private_word() -> None:
    rows = without_private_words(examine(BrokenMachine(RuntimeError(POISON))), PRIVATE)
    assert [word for word in WORDS if word in as_report(rows).lower()] == []


def test_private_words_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/homes/carol")
    monkeypatch.setenv("USERPROFILE", "/homes/carol")
    words = private_words(
        {"USER": "dave", "HOSTNAME": "box", "HF_TOKEN": "abcdef", "A_KEY": "1"}, (tmp_path,)
    )
    assert {"carol", "dave"} <= set(words.users)
    assert "box" in words.hosts
    assert {str(tmp_path), "/homes/carol"} <= set(words.folders)
    assert words.secrets == ("abcdef",)


def test_a_folder_is_hidden_by_its_link_and_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "real folder").mkdir()
    (tmp_path / "link to it").symlink_to(tmp_path / "real folder")
    words = private_words({}, (tmp_path / "link to it",))
    assert words.hide(f"{tmp_path / 'link to it'} and {tmp_path / 'real folder'}") == "<path> and <path>"


def test_names_that_many_machines_share_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/root")
    words = private_words({"USER": "root", "LOGNAME": "user", "HOSTNAME": "localhost"})
    assert {"root", "user", "localhost"}.isdisjoint(words.users + words.hosts)
