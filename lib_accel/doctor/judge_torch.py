"""Judges torch, its devices, and what runs on them."""

from __future__ import annotations

from lib_accel.doctor.facts import Devices, Driver, Machine
from lib_accel.doctor.verdict import Verdict
from lib_accel.requirements import OLDEST, is_older, why_not

OLDEST_TRITON = "3.0"
_TRITON_CAPABILITY = (8, 0)  # what Triton's README promises; older GPUs work with some versions
_NOT_NEEDED = "nothing: direct code runs without it"
_INSTALL = (
    "python run.py doctor --install, which makes .venv and leaves this Python as it is; "
    "for a webui, run doctor with the webui's own Python"
)
_CUDA_BUILD = "install torch's CUDA build, see https://pytorch.org/get-started/locally/"


def judge_torch(machine: Machine) -> Verdict:
    """Whether torch imports, and which columns of the README's "What works where" are for it."""
    torch = machine.packages["torch"]
    if torch.version is None:
        return Verdict("no", "not installed", _INSTALL)
    devices = machine.devices
    if torch.fault or devices is None:
        return Verdict(
            "no",
            f"{torch.version} cannot be imported: {torch.fault}",
            "python -m pip install --force-reinstall torch, or: python run.py doctor --install",
        )
    columns = [_column_of(torch.version)]
    if machine.interpreter.system == "Windows":
        columns.append("Windows")
    if not devices.gpus:
        columns.append("no GPU")
    finding = f"{torch.version}, built for {devices.build}; README, 'What works where': {', '.join(columns)}"
    reason = why_not("torch", torch.version)
    if reason:
        return Verdict("limited", f"{finding}; {reason}", f'python -m pip install "torch>={OLDEST["torch"]}"')
    return Verdict("yes", finding)


def _column_of(version: str) -> str:
    if is_older(version, OLDEST["torch"]):
        return f"torch before {OLDEST['torch']}"
    return "torch 2.1 to 2.5" if is_older(version, "2.6") else "torch 2.6 or newer"


def judge_device(machine: Machine) -> Verdict:
    """What computes; where that is no GPU, why."""
    devices = machine.devices
    if devices is None:
        return Verdict("no", "only torch can tell", "see the row torch")
    if devices.gpus:
        return _judge_gpus(devices)
    if devices.others:
        kinds = ", ".join(devices.others)
        return Verdict(
            "limited",
            f"{kinds} is not supported: blocks run there as they were; ours run on the {_cpu(devices)}",
            "nothing: pictures come out as they would without us",
        )
    reason, fix = _why_no_gpu(devices, machine.driver, machine.interpreter.system)
    return Verdict("limited", f"{_cpu(devices)}, no GPU: {reason}", fix)


def _judge_gpus(devices: Devices) -> Verdict:
    names = "; ".join(
        f"{gpu.name} (capability {gpu.capability[0]}.{gpu.capability[1]}, {gpu.memory_mib / 1024:.1f} GiB)"
        for gpu in devices.gpus
    )
    if devices.build.startswith("ROCm"):
        return Verdict(
            "limited", f"{names}; AMD's GPUs have not been tried", "nothing: see the row code: direct"
        )
    unfit = [gpu for gpu in devices.gpus if not _is_built_for(gpu.capability, devices.built_for)]
    if unfit:
        built_for = ", ".join(devices.built_for)
        finding = f"{names}; this torch has no code for {unfit[0].name}: it is built for {built_for}"
        return Verdict("limited", finding, f"{_CUDA_BUILD}, for an older or newer CUDA")
    return Verdict("yes", names)


def _is_built_for(capability: tuple[int, int], built_for: tuple[str, ...]) -> bool:
    """Whether a torch with code for these architectures runs on a GPU of that capability."""
    major, minor = capability
    for name in built_for:
        kind, _, digits = name.partition("_")
        number = int("".join(filter(str.isdigit, digits)) or 0)
        # Machine code runs on later GPUs of its generation, intermediate code on all later ones.
        if kind == "sm" and number // 10 == major and number % 10 <= minor:
            return True
        if kind == "compute" and number <= 10 * major + minor:
            return True
    return not built_for


def _cpu(devices: Devices) -> str:
    vectors = f"{devices.cpu}, " if devices.cpu else ""
    return f"CPU ({vectors}{devices.threads} thread{'s' if devices.threads > 1 else ''})"


def _why_no_gpu(devices: Devices, driver: Driver, system: str) -> tuple[str, str]:
    if system == "Darwin":
        return "macOS has no CUDA", "nothing: the CPU is supported"
    if devices.build == "CPU" and driver.is_present:
        return "an NVIDIA driver is here, but torch is a CPU build", _CUDA_BUILD
    if devices.build == "CPU":
        return (
            "torch is a CPU build",
            f"nothing without an NVIDIA GPU; with one: its driver, then {_CUDA_BUILD}",
        )
    if driver.hides_gpus:
        unset = "set CUDA_VISIBLE_DEVICES=" if system == "Windows" else "unset CUDA_VISIBLE_DEVICES"
        return "CUDA_VISIBLE_DEVICES hides all GPUs", unset
    if driver.is_present:
        return (
            devices.complaint or "torch finds none behind the NVIDIA driver that is here",
            "nvidia-smi must list the GPU; if it does not, update the driver and restart",
        )
    if devices.build.startswith("ROCm"):
        return devices.complaint or "ROCm finds none", "nothing without an AMD GPU; with one: see rocminfo"
    return "no NVIDIA driver found", "nothing without an NVIDIA GPU; with one: install its driver and restart"


def judge_triton(machine: Machine) -> Verdict:
    """Whether Triton's kernels could run. This version has none."""
    triton, system = machine.packages["triton"], machine.interpreter.system
    unused = "not used by this version"
    if triton.version is None:
        fix = {
            "Darwin": "nothing: there is no Triton for macOS; direct code runs without it",
            "Windows": f"{_NOT_NEEDED}; python -m pip install triton-windows brings it",
        }.get(system, f"{_NOT_NEEDED}; torch's CUDA build brings it")
        return Verdict("no", f"not installed; {unused}", fix)
    if triton.fault:
        return Verdict("no", f"{triton.version} cannot be imported: {triton.fault}", _NOT_NEEDED)
    if is_older(triton.version, OLDEST_TRITON):
        finding = f"{triton.version} is older than {OLDEST_TRITON}; {unused}"
        return Verdict("limited", finding, f"{_NOT_NEEDED}; a newer torch brings a newer one")
    gpus = machine.devices.gpus if machine.devices else ()
    if not gpus:
        finding = f"{triton.version}, interpreter only, as there is no GPU; {unused}"
        return Verdict("limited", finding, f"{_NOT_NEEDED}; TRITON_INTERPRET=1 is for tests")
    if gpus[0].capability < _TRITON_CAPABILITY:
        finding = f"{triton.version}; {gpus[0].name} is older than the GPUs it supports; {unused}"
        return Verdict("limited", finding, _NOT_NEEDED)
    return Verdict("yes", f"{triton.version}, usable on {gpus[0].name}; {unused}")


def judge_direct(machine: Machine) -> Verdict:
    """Whether our own code computes what plain torch does, here and now."""
    if not machine.trials:
        return Verdict("no", "needs torch", "see the row torch")
    told = ", ".join(
        f"difference {trial.difference:.2g} from plain torch on {trial.device} in {trial.dtype}"
        for trial in machine.trials
    )
    # Written so that a difference of nan is wrong.
    wrong = [trial for trial in machine.trials if not trial.difference <= trial.tolerance]
    if wrong:
        report = (
            "switch acceleration off, and please report what `python -m lib_accel doctor --report` prints"
        )
        return Verdict("no", f"wrong on {wrong[0].device}: {told}", report)
    return Verdict("yes", f"works, {told}")
