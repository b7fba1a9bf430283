"""What a library keeps of files, for how long, and for how many threads."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lib_accel.lora import library
from lib_accel.lora.formats import LoraError
from lib_accel.lora.library import Library
from tests.lora.small import draw

MIB = 2**20


def file(path: Path, name: str = "style.safetensors", mib: int = 1) -> Path:
    """A network of that size."""
    save_file({"lora_unet_linear.diff": draw(1, mib * 512, 512)}, path / name)
    return path / name


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The sources that were read, in turn."""
    seen: list[Any] = []
    right = library.read_network
    monkeypatch.setattr(library, "read_network", lambda source: seen.append(source) or right(source))
    return seen


def test_a_file_is_read_once_under_all_its_names(tmp_path: Path, reads: list[Any]) -> None:
    path, kept = file(tmp_path), Library()
    (tmp_path / "link.safetensors").symlink_to(path)
    first = kept.read(path)
    assert kept.read(str(path)) is first
    assert kept.read(tmp_path / "link.safetensors") is first
    assert len(reads) == 1


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def grow(path: Path) -> None:
    before = path.stat()
    file(path.parent, path.name, mib=2)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def config(path: Path) -> None:
    (path.parent / "adapter_config.json").write_text(json.dumps({"lora_alpha": 3}))


@pytest.mark.parametrize("change", [touch, grow, config])
def test_a_file_that_changed_is_read_anew_and_its_old_state_dropped(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    path, kept = file(tmp_path, "adapter_model.safetensors"), Library()
    first = kept.read(path)
    change(path)
    assert kept.read(path) is not first
    assert kept.kept_bytes == path.stat().st_size


def test_files_that_were_not_used_for_longest_go_first(tmp_path: Path, reads: list[Any]) -> None:
    one, two, three = (file(tmp_path, f"{name}.safetensors") for name in ("one", "two", "three"))
    kept = Library(limit_mib=3)  # each is a little larger than one MiB
    for path in (one, two, one, three, one):
        kept.read(path)
    assert reads == [one, two, three]
    kept.read(two)
    assert reads == [one, two, three, two]
    assert kept.kept_bytes <= 3 * MIB


def test_a_file_larger_than_the_limit_is_not_kept(tmp_path: Path) -> None:
    kept = Library(limit_mib=1)
    kept.read(file(tmp_path, mib=2))
    assert kept.kept_bytes == 0


def test_what_is_wrong_is_said_each_time(tmp_path: Path, reads: list[Any]) -> None:
    (tmp_path / "style.safetensors").write_bytes(b"no header")
    kept = Library()
    for _ in range(2):
        with pytest.raises(LoraError, match="cut short"):
            kept.read(tmp_path / "style.safetensors")
    with pytest.raises(LoraError, match="no such file"):
        kept.read(tmp_path / "absent.safetensors")
    assert len(reads) == 2


@pytest.mark.parametrize("fails", [False, True])
def test_threads_that_ask_at_once_wait_for_one_read(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, kept, right = file(tmp_path), Library(), library.read_network
    begun, go, reads = threading.Event(), threading.Event(), []

    def slow(source: Path) -> Any:
        reads.append(source)
        begun.set()
        assert go.wait(30)
        if fails:
            raise LoraError("broken")
        return right(source)

    got: list[Any] = []

    def ask() -> None:
        try:
            got.append(kept.read(path))
        except LoraError as error:
            got.append(error)

    monkeypatch.setattr(library, "read_network", slow)
    threads = [threading.Thread(target=ask) for _ in range(4)]
    threads[0].start()
    assert begun.wait(30)
    for thread in threads[1:]:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    assert len({id(each) for each in got if not fails}) == (0 if fails else 1)
    assert all(isinstance(each, LoraError) is fails for each in got)
    assert len(got) == 4
    assert fails or len(reads) == 1


def test_tensors_are_kept_as_long_as_they_are_said_to_be(reads: list[Any]) -> None:
    kept, tensors = Library(), {"lora_unet_linear.diff": torch.ones(2, 2)}
    network = kept.read(tensors)
    assert kept.read(dict(tensors)) is network
    kept.keep_given([network])
    assert kept.read(tensors) is network
    kept.keep_given([])
    assert kept.read(tensors) is not network
    assert len(reads) == 2
