"""LoRAs of a handle are read once, ahead if asked to, and taken off and on without copies."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lib_accel.lora import library
from lib_accel.lora.formats import LoraError
from tests.diffusers import models
from tests.diffusers.test_equality import Accelerate
from tests.diffusers.test_loras import bits, lora_for, same


@pytest.fixture
def pipe() -> Any:
    """A pipeline with models of its own."""
    return models.own_pipeline()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads that read a source, in turn."""
    seen: list[str] = []
    right = library.read_network

    def read(source: Any) -> Any:
        seen.append(threading.current_thread().name)
        return right(source)

    monkeypatch.setattr(library, "read_network", read)
    return seen


def saved(pipe: Any, path: Path, seed: int = 0, **options: Any) -> Path:
    save_file(lora_for(pipe, seed, **options), path)
    return path


def test_a_file_is_read_once(pipe: Any, accelerate: Accelerate, tmp_path: Path, reads: list[str]) -> None:
    file = saved(pipe, tmp_path / "style.safetensors")
    handle = accelerate(pipe)
    for scale in (1.0, 0.5, 0.0, 1.0):
        handle.set_loras([(file, scale, scale)])
        handle.set_loras([])
    assert len(reads) == 1


def test_a_file_that_changed_under_its_name_is_read_anew(
    pipe: Any, accelerate: Accelerate, tmp_path: Path
) -> None:
    file = saved(pipe, tmp_path / "style.safetensors")
    new = lora_for(pipe, 1, rank=2)
    handle = accelerate(pipe)
    handle.set_loras([(file, 1.0, 1.0)])
    before = bits(pipe)
    save_file(new, tmp_path / "new.safetensors")
    (tmp_path / "new.safetensors").replace(file)
    assert handle.set_loras([(file, 1.0, 1.0)]).layers > 0
    changed = bits(pipe)
    assert not same(before, changed)
    handle.set_loras([(new, 1.0, 1.0)])
    assert same(changed, bits(pipe))


def test_tensors_that_stay_in_the_set_are_read_once(
    pipe: Any, accelerate: Accelerate, reads: list[str]
) -> None:
    one, two = lora_for(pipe, 1), lora_for(pipe, 2)
    handle = accelerate(pipe)
    handle.set_loras([(one, 1.0, 1.0)])
    handle.set_loras([(one, 0.5, 0.5), (two, 1.0, 1.0)])
    assert len(reads) == 2
    one[next(iter(one))].mul_(2)
    handle.set_loras([(one, 0.5, 0.5), (two, 1.0, 1.0)])
    assert len(reads) == 3


def test_off_and_on_copies_nothing_again_and_detach_frees(pipe: Any, accelerate: Accelerate) -> None:
    handle, lora = accelerate(pipe), lora_for(pipe)
    assert handle.base_bytes == 0
    handle.set_loras([(lora, 1.0, 1.0)])
    held, copies = handle.base_bytes, id(handle._fuser)
    assert held > 0
    handle.set_loras([])
    assert (handle.base_bytes, id(handle._fuser)) == (held, copies)
    handle.detach()
    assert handle.base_bytes == 0


def test_prefetched_files_are_read_on_another_thread(
    pipe: Any, accelerate: Accelerate, tmp_path: Path, reads: list[str]
) -> None:
    file, before = saved(pipe, tmp_path / "style.safetensors"), bits(pipe)
    handle = accelerate(pipe)
    handle.prefetch([(file, 1.0, 1.0)]).result()
    assert same(bits(pipe), before)
    handle.set_loras([(file, 1.0, 1.0)])
    assert len(reads) == 1
    assert reads[0].startswith("accel-prefetch")
    assert not same(bits(pipe), before)


@pytest.mark.parametrize("wrong", ["broken", "absent", "misfit"])
def test_what_is_wrong_with_a_prefetched_file_is_said_by_set_loras(
    wrong: str, pipe: Any, accelerate: Accelerate, tmp_path: Path
) -> None:
    file = tmp_path / "style.safetensors"
    if wrong == "broken":
        file.write_bytes(b"no safetensors")
    if wrong == "misfit":
        saved(models.own_pipeline("sdxl"), file)
    handle = accelerate(pipe)
    handle.prefetch([(file, 1.0, 1.0), "no tuple"]).result()
    with pytest.raises(LoraError, match="style"):
        handle.set_loras([(file, 1.0, 1.0)])


def test_prefetch_while_sets_are_set_changes_nothing(
    pipe: Any, accelerate: Accelerate, tmp_path: Path
) -> None:
    files = [saved(pipe, tmp_path / f"{seed}.safetensors", seed) for seed in range(6)]
    handle, before = accelerate(pipe), bits(pipe)
    for file in files:
        ahead = handle.prefetch([(other, 1.0, 1.0) for other in files])
        handle.set_loras([(file, 0.5, 0.5)])
        ahead.result()
    fused = bits(pipe)
    handle.set_loras([])
    assert same(bits(pipe), before)
    handle.set_loras([(files[-1], 0.5, 0.5)])
    assert same(bits(pipe), fused)


def test_a_fourth_value_takes_the_first_ranks_only(pipe: Any, accelerate: Accelerate) -> None:
    lora = lora_for(pipe, rank=4, alpha=4.0)
    cuts = {"lora_down": lambda tensor: tensor[:2], "lora_up": lambda tensor: tensor[:, :2]}
    first = {
        name: cuts.get(name.split(".")[1], lambda alpha: alpha / 2)(tensor) for name, tensor in lora.items()
    }
    handle = accelerate(pipe)
    handle.set_loras([(lora, 1.0, 1.0, 2)])
    cut = bits(pipe)
    handle.set_loras([(first, 1.0, 1.0)])
    assert same(bits(pipe), cut)
    handle.set_loras([(lora, 1.0, 1.0, None)])
    assert not same(bits(pipe), cut)


@pytest.mark.parametrize("ranks", [0, -1, 1.5, "2"])
def test_number_of_ranks_that_is_none_is_refused(ranks: Any, pipe: Any, accelerate: Accelerate) -> None:
    with pytest.raises(LoraError, match="dyn_dim"):
        accelerate(pipe).set_loras([(lora_for(pipe), 1.0, 1.0, ranks)])


def test_no_file_is_ever_unpickled(
    pipe: Any, accelerate: Accelerate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch.load was called"))
    handle = accelerate(pipe)
    handle.set_loras([(saved(pipe, tmp_path / "style.safetensors"), 1.0, 1.0)])
    for ending in (".ckpt", ".pt", ".bin", ".pth"):
        (tmp_path / f"style{ending}").write_bytes(b"cos\nsystem\n")
        with pytest.raises(LoraError, match="pickle"):
            handle.set_loras([(tmp_path / f"style{ending}", 1.0, 1.0)])
