"""From facts to verdicts, without a machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lib_accel.doctor.checks import CHECKS, examine
from lib_accel.doctor.facts import Cache, Compiler, Devices, Driver, Gpu, Package, Trial, Webui
from lib_accel.doctor.judge_packages import judge_package, judge_xformers
from lib_accel.doctor.judge_surroundings import judge_cache, judge_compiler, judge_python, judge_webui
from lib_accel.doctor.judge_torch import judge_device, judge_direct, judge_torch, judge_triton
from lib_accel.doctor.verdict import Verdict
from tests.doctor.machines import BARE, CUDA_ARCHITECTURES, GOOD, NO_GPU, FakeMachine

NOT_IN_THIS_VERSION = {"code: compiled", "launch: graph"}


def _statuses(machine: FakeMachine) -> dict[str, str]:
    return {row.what: row.verdict.status for row in examine(machine)}


def test_on_a_good_machine_only_what_this_version_lacks_is_no() -> None:
    no = {what for what, status in _statuses(GOOD).items() if status != "yes"}
    assert no == NOT_IN_THIS_VERSION


def test_on_a_bare_machine_only_python_and_the_cache_folder_are_yes() -> None:
    assert {what for what, status in _statuses(BARE).items() if status == "yes"} == {"Python", "cache folder"}


def test_a_verdict_that_is_not_yes_must_say_what_to_do() -> None:
    with pytest.raises(AssertionError, match="no fix"):
        Verdict("limited", "half of it")


@pytest.mark.parametrize("system", ["Linux", "Windows", "Darwin"])
@pytest.mark.parametrize("machine", [BARE, NO_GPU], ids=["bare", "no GPU"])
def test_every_row_can_be_judged_on_every_system(machine: FakeMachine, system: str) -> None:
    assert [row.what for row in examine(machine.on(system)) if "could not" in row.verdict.finding] == []
    assert set(_statuses(machine)) == set(CHECKS)


def test_python_before_3_10_is_no() -> None:
    old = replace(GOOD, interpreter=replace(GOOD.interpreter, version=(3, 9, 18)))
    assert (judge_python(old).status, judge_python(old).fix) == ("no", "start it with Python 3.10 or newer")


@pytest.mark.parametrize(
    ("version", "column"),
    [
        ("2.0.1", "torch before 2.1"),
        ("2.1.2+cu121", "torch 2.1 to 2.5"),
        ("2.5.1", "torch 2.1 to 2.5"),
        ("2.6.0", "torch 2.6 or newer"),
        ("2.13.0+cpu", "torch 2.6 or newer"),
    ],
)
def test_torch_row_names_the_column_of_its_version(version: str, column: str) -> None:
    assert column in judge_torch(GOOD.having(torch=Package(version))).finding


def test_torch_row_names_the_columns_of_system_and_device() -> None:
    assert judge_torch(NO_GPU).finding.endswith("torch 2.6 or newer, no GPU")
    assert judge_torch(GOOD.on("Windows")).finding.endswith("torch 2.6 or newer, Windows")
    assert judge_torch(GOOD).finding.endswith("torch 2.6 or newer")


def test_torch_older_than_was_tried_is_limited() -> None:
    assert judge_torch(GOOD.having(torch=Package("2.0.1"))).status == "limited"


def test_torch_that_cannot_be_imported_is_no_with_the_error() -> None:
    machine = replace(GOOD.having(torch=Package("2.13.0", "OSError: no libcudart.so")), devices=None)
    assert judge_torch(machine).status == "no"
    assert "OSError: no libcudart.so" in judge_torch(machine).finding


def test_missing_torch_is_fixed_by_a_command_of_ours() -> None:
    assert "python run.py doctor --install" in judge_torch(BARE).fix


def test_device_row_says_name_capability_and_memory() -> None:
    assert judge_device(GOOD) == Verdict("yes", "NVIDIA H100 (capability 9.0, 79.6 GiB)")


@pytest.mark.parametrize(
    ("build", "driver", "finding", "fix"),
    [
        ("CPU", Driver(), "torch is a CPU build", "its driver, then install torch's CUDA build"),
        ("CPU", Driver(is_present=True), "an NVIDIA driver is here", "install torch's CUDA build"),
        ("CUDA 13.0", Driver(), "no NVIDIA driver", "install its driver"),
        ("CUDA 13.0", Driver(is_present=True), "torch finds none", "nvidia-smi"),
        (
            "CUDA 13.0",
            Driver(True, hides_gpus=True),
            "CUDA_VISIBLE_DEVICES hides",
            "unset CUDA_VISIBLE_DEVICES",
        ),
        ("ROCm 6.4", Driver(), "ROCm finds none", "rocminfo"),
    ],
)
def test_device_row_without_gpu_says_why(build: str, driver: Driver, finding: str, fix: str) -> None:
    verdict = judge_device(replace(GOOD, devices=Devices(build), driver=driver))
    assert verdict.status == "limited"
    assert finding in verdict.finding
    assert fix in verdict.fix


def test_what_torch_complained_of_is_the_reason() -> None:
    devices = Devices("CUDA 13.0", complaint="The NVIDIA driver on your system is too old")
    assert "driver on your system is too old" in judge_device(replace(GOOD, devices=devices)).finding


def test_a_gpu_that_torch_has_no_code_for_is_limited() -> None:
    old = Devices("CUDA 13.0", (Gpu("GTX 1080", (6, 1), 8192),), CUDA_ARCHITECTURES)
    assert judge_device(replace(GOOD, devices=old)).status == "limited"


@pytest.mark.parametrize("built_for", [("sm_75",), ("sm_89",), ("compute_90",)])
def test_code_for_another_generation_or_a_later_gpu_does_not_serve(built_for: tuple[str, ...]) -> None:
    devices = Devices("CUDA 13.0", (Gpu("RTX 3090", (8, 6), 24576),), built_for)
    assert judge_device(replace(GOOD, devices=devices)).status == "limited"


@pytest.mark.parametrize("capability", [(7, 5), (8, 6), (8, 9), (9, 0), (12, 0), (13, 0)])
def test_code_for_an_earlier_gpu_of_a_generation_or_intermediate_code_serves(
    capability: tuple[int, int],
) -> None:
    devices = Devices("CUDA 13.0", (Gpu("GPU", capability, 8192),), CUDA_ARCHITECTURES)
    assert judge_device(replace(GOOD, devices=devices)).status == "yes"


def test_gpus_that_nobody_tried_are_limited() -> None:
    amd = Devices("ROCm 6.4", (Gpu("MI300X", (9, 4), 196608),))
    apple = Devices("CPU", others=("mps",))
    assert judge_device(replace(GOOD, devices=amd)).status == "limited"
    assert "mps is not supported" in judge_device(replace(GOOD, devices=apple)).finding


@pytest.mark.parametrize(
    ("machine", "status", "finding"),
    [
        (GOOD, "yes", "3.7.1, usable on NVIDIA H100"),
        (NO_GPU, "limited", "interpreter only"),
        (GOOD.having(triton=Package("2.1.0")), "limited", "older than 3.0"),
        (GOOD.having(triton=Package()), "no", "not installed"),
        (GOOD.having(triton=Package("3.7.1", "ImportError: x")), "no", "ImportError: x"),
        (replace(GOOD, devices=Devices("CUDA 12.6", (Gpu("T4", (7, 5), 1),))), "limited", "T4 is older"),
    ],
)
def test_triton_is_judged_by_version_import_and_gpu(machine: FakeMachine, status: str, finding: str) -> None:
    assert judge_triton(machine).status == status
    assert finding in judge_triton(machine).finding


def test_missing_triton_is_fixed_as_the_system_needs_it() -> None:
    machine = GOOD.having(triton=Package())
    assert "pip install triton-windows" in judge_triton(machine.on("Windows")).fix
    assert "no Triton for macOS" in judge_triton(machine.on("Darwin")).fix


@pytest.mark.parametrize("difference", [0.5, float("nan")])
def test_direct_code_that_differs_is_no(difference: float) -> None:
    trials = (Trial("cpu", "float32", 0.0, 1e-5), Trial("cuda", "float16", difference, 1e-2))
    verdict = judge_direct(replace(GOOD, trials=trials))
    assert verdict.status == "no"
    assert "wrong on cuda" in verdict.finding


def test_direct_code_that_agrees_is_yes_with_its_differences() -> None:
    trials = (Trial("cpu", "float32", 0.0, 1e-5), Trial("cuda", "float16", 0.001, 1e-2))
    finding = judge_direct(replace(GOOD, trials=trials)).finding
    assert "difference 0 from plain torch on cpu in float32" in finding
    assert "difference 0.001 from plain torch on cuda in float16" in finding


@pytest.mark.parametrize(
    ("machine", "status", "finding"),
    [
        (GOOD, "yes", "0.0.35"),
        (NO_GPU, "limited", "has no attention for the CPU"),
        (GOOD.having(xformers=Package("0.0.35", "NotImplementedError: No operator")), "no", "No operator"),
        (GOOD.having(xformers=Package()), "no", "not installed"),
    ],
)
def test_xformers_is_judged_by_import_and_device(machine: FakeMachine, status: str, finding: str) -> None:
    assert judge_xformers(machine).status == status
    assert finding in judge_xformers(machine).finding


@pytest.mark.parametrize(
    ("package", "status", "finding"),
    [
        (Package("0.42.1"), "yes", "0.42.1"),
        (Package("0.29.0"), "limited", "older than 0.30.3"),
        (Package("0.42.1", "ImportError: cannot import name 'x'"), "no", "cannot import name 'x'"),
        (Package(), "no", "not installed; needed for pipelines"),
    ],
)
def test_a_package_is_judged_by_version_and_import(package: Package, status: str, finding: str) -> None:
    verdict = judge_package("diffusers")(GOOD.having(diffusers=package))
    assert verdict.status == status
    assert finding in verdict.finding
    assert status == "yes" or 'python -m pip install "diffusers>=0.30.3"' in verdict.fix


@pytest.mark.parametrize(
    ("system", "installer", "fix"),
    [
        ("Linux", "apt-get", "sudo apt-get install g++"),
        ("Linux", "dnf", "sudo dnf install gcc-c++"),
        ("Linux", None, "your system's package manager"),
        ("Darwin", None, "xcode-select --install"),
        ("Windows", None, "BuildTools"),
    ],
)
def test_missing_compiler_is_fixed_as_the_system_needs_it(
    system: str, installer: str | None, fix: str
) -> None:
    verdict = judge_compiler(replace(GOOD.on(system), compiler=Compiler(installer=installer)))
    assert verdict.status == "no"
    assert fix in verdict.fix


def test_broken_compiler_that_was_chosen_is_fixed_where_it_was_chosen() -> None:
    broken = Compiler("icpx", fault="ended with 1: no licence", is_chosen=True, installer="apt-get")
    verdict = judge_compiler(replace(GOOD, compiler=broken))
    assert "no licence" in verdict.finding
    assert "the variable CXX" in verdict.fix


@pytest.mark.parametrize(("exists", "finding"), [(True, "is not writable"), (False, "cannot be made")])
def test_cache_folder_that_is_closed_is_no(exists: bool, finding: str) -> None:
    cache = Cache("~/.cache/sd-webui-accel", "XDG_CACHE_HOME", exists, is_writable=False)
    verdict = judge_cache(replace(GOOD, cache=cache))
    assert finding in verdict.finding
    assert verdict.fix == "set XDG_CACHE_HOME to a folder you may write to"


@pytest.mark.parametrize(
    ("webui", "status", "finding"),
    [
        (Webui("--webui", version="1.10.1", has_us=True), "yes", "1.10.1, without sd-webui-controlnet"),
        (Webui("--webui", version="1.10.1"), "limited", "this extension is not in it"),
        (Webui("--webui", version="1.9.4", has_us=True), "limited", "tested with 1.10.1 only"),
        (Webui("--webui", has_us=True), "limited", "of unknown version"),
        (Webui("--webui", is_forge=True, has_us=True), "no", "Forge"),
        (
            Webui("the variable SD_WEBUI_ROOT", ("launch.py",)),
            "no",
            "SD_WEBUI_ROOT names no webui: it lacks launch.py",
        ),
        (Webui(), "no", "none named"),
    ],
)
def test_webui_is_judged_by_what_is_in_it(webui: Webui, status: str, finding: str) -> None:
    verdict = judge_webui(replace(GOOD, webui=webui))
    assert verdict.status == status
    assert finding in verdict.finding
