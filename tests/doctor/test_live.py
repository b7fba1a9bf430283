"""Facts of this machine, and of what can be pretended on it."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lib_accel.blocks import res
from lib_accel.doctor.direct import try_direct
from lib_accel.doctor.facts import Driver, Gpu, Package
from lib_accel.doctor.live import LiveMachine, find_cache, find_devices, find_driver


def test_direct_code_is_right_on_the_cpu() -> None:
    cpu = try_direct()[0]
    assert (cpu.device, cpu.dtype) == ("cpu", "float32")
    assert cpu.difference <= cpu.tolerance


def test_a_fault_of_direct_code_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = res.res_block
    monkeypatch.setattr(res, "res_block", lambda *given: right(*given) + 0.001)
    assert try_direct()[0].difference > try_direct()[0].tolerance


def test_trying_direct_code_leaves_the_programs_random_numbers() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        before = torch.get_rng_state()
        try_direct()
        assert torch.equal(torch.get_rng_state(), before)


def test_a_torch_that_cannot_be_imported_is_not_touched() -> None:
    machine = LiveMachine()
    machine.__dict__["packages"] = {"torch": Package("2.13.0", "its import ends the process with SIGILL")}
    assert machine.devices is None
    assert machine.trials == ()


def test_devices_of_a_machine_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    devices = find_devices()
    assert (devices.build, devices.gpus, devices.complaint) == ("CPU", (), None)
    assert devices.threads == torch.get_num_threads()


def test_gpus_have_name_capability_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="H100", major=9, minor=0, total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90"])
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    devices = find_devices()
    assert devices.gpus == (Gpu("H100", (9, 0), 81920),) * 2
    assert (devices.build, devices.built_for) == ("CUDA 13.0", ("sm_90",))


def test_what_torch_warns_of_is_the_complaint(monkeypatch: pytest.MonkeyPatch) -> None:
    def warn() -> bool:
        warnings.warn("CUDA initialization:\n the driver is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", warn)
    assert find_devices().complaint == "CUDA initialization: the driver is too old"


@pytest.mark.parametrize(("value", "hides"), [("", True), (" -1", True), ("0", False), (None, False)])
def test_hidden_gpus_are_seen(value: str | None, hides: bool) -> None:
    environment = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    assert find_driver("Linux", environment).hides_gpus is hides


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for nvidia-smi is a shell script")
def test_a_driver_is_known_by_its_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_driver("Linux", {}).is_present


def test_windows_driver_is_known_by_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert find_driver("Windows", {"SYSTEMROOT": str(tmp_path)}) == Driver()
    (tmp_path / "System32").mkdir()
    (tmp_path / "System32" / "nvcuda.dll").touch()
    assert find_driver("Windows", {"SYSTEMROOT": str(tmp_path)}) == Driver(is_present=True)


@pytest.mark.parametrize(
    ("system", "shown", "setting"),
    [
        ("Linux", "~/.cache/sd-webui-accel", "XDG_CACHE_HOME"),
        ("Darwin", "~/Library/Caches/sd-webui-accel", "XDG_CACHE_HOME"),
        ("Windows", "~/AppData/Local/sd-webui-accel", "LOCALAPPDATA"),
    ],
)
def test_cache_folder_is_where_the_system_has_it(
    system: str, shown: str, setting: str, tmp_path: Path
) -> None:
    cache = find_cache(system, {}, tmp_path)
    assert (cache.folder, cache.setting) == (shown, setting)
    assert (cache.exists, cache.is_writable) == (False, True)
    assert list(tmp_path.iterdir()) == []


def test_cache_folder_can_be_moved_and_is_shown_by_the_variable(tmp_path: Path) -> None:
    (tmp_path / "sd-webui-accel").mkdir()
    cache = find_cache("Linux", {"XDG_CACHE_HOME": str(tmp_path)}, Path("/nowhere"))
    assert (cache.folder, cache.exists) == ("$XDG_CACHE_HOME/sd-webui-accel", True)


def test_a_file_in_the_way_closes_the_cache_folder(tmp_path: Path) -> None:
    (tmp_path / ".cache").touch(mode=0o777)
    assert not find_cache("Linux", {}, tmp_path).is_writable
