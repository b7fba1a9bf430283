"""Judges the packages beside torch."""

from __future__ import annotations

from collections.abc import Callable

from lib_accel.doctor.facts import Machine
from lib_accel.doctor.verdict import Verdict
from lib_accel.requirements import OLDEST, why_not

_NEEDED_FOR = {
    "diffusers": "for pipelines, the demo and the benchmark",
    "transformers": "for text encoders of pipelines",
    "accelerate": "by diffusers, to load models with little memory",
    "peft": "by diffusers' own LoRA loading and by the benchmark; our LoRA loading does without",
    "safetensors": "to read LoRA files",
}


def judge_package(name: str) -> Callable[[Machine], Verdict]:
    """The judge of one package that a webui does without or brings itself."""

    def judge(machine: Machine) -> Verdict:
        package = machine.packages[name]
        reason = why_not(name, package.version)
        use = f"needed {_NEEDED_FOR[name]}"
        fix = f'python -m pip install "{name}>={OLDEST[name]}"; in a webui nothing: leave its packages alone'
        if package.version is None:
            return Verdict("no", f"not installed; {use}", fix)
        if package.fault:
            return Verdict("no", f"{package.version} cannot be imported: {package.fault}; {use}", fix)
        return Verdict("limited", f"{reason}; {use}", fix) if reason else Verdict("yes", package.version)

    return judge


def judge_xformers(machine: Machine) -> Verdict:
    """Whether xformers' attention runs on the device: one of those that are tried on a GPU."""
    xformers, devices = machine.packages["xformers"], machine.devices
    unused = "nothing: without it attention is by torch's kernels"
    if xformers.version is None:
        return Verdict("no", "not installed", unused)
    if xformers.fault:
        return Verdict("no", f"{xformers.version} does not work: {xformers.fault}", unused)
    if devices is None or not devices.gpus:
        return Verdict("limited", f"{xformers.version} has no attention for the CPU", unused)
    return Verdict("yes", f"{xformers.version}, its attention runs on {devices.gpus[0].name}")
