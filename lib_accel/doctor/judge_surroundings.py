"""Judges what is around us: Python, compiler, cache folder, webui."""

from __future__ import annotations

from lib_accel.doctor.facts import Machine
from lib_accel.doctor.verdict import Verdict
from lib_accel.requirements import OLDEST_PYTHON

TESTED_WEBUI = "1.10"

_INSTALL_COMPILER = {
    "apt-get": "sudo apt-get install g++",
    "dnf": "sudo dnf install gcc-c++",
    "pacman": "sudo pacman -S gcc",
    "zypper": "sudo zypper install gcc-c++",
    "apk": "sudo apk add g++",
}


def judge_python(machine: Machine) -> Verdict:
    """Whether this Python is new enough."""
    python = machine.interpreter
    version = ".".join(map(str, python.version))
    finding = f"{version} ({python.implementation}, {python.system} {python.architecture})"
    if python.version < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        return Verdict("no", finding, f"start it with Python {wanted} or newer")
    return Verdict("yes", finding)


def judge_compiler(machine: Machine) -> Verdict:
    """Whether a C++ compiler is there and works. This version needs none."""
    compiler = machine.compiler
    if compiler.name is None:
        return Verdict("no", "none found; not needed by this version", _install_compiler(machine))
    if compiler.fault:
        fix = _install_compiler(machine)
        if compiler.is_chosen:
            fix = f"let the variable CXX name a compiler that works, or unset it; {fix}"
        return Verdict(
            "no", f"{compiler.name} does not work: {compiler.fault}; not needed by this version", fix
        )
    version = f" {compiler.version}" if compiler.version else ""
    return Verdict(
        "yes", f"{compiler.name}{version}: a trivial program compiles and runs; not needed by this version"
    )


def _install_compiler(machine: Machine) -> str:
    if machine.interpreter.system == "Darwin":
        return "xcode-select --install"
    if machine.interpreter.system == "Windows":
        return (
            "winget install Microsoft.VisualStudio.2022.BuildTools, with 'Desktop development with C++'; "
            "then start from its x64 Native Tools Command Prompt"
        )
    return _INSTALL_COMPILER.get(
        machine.compiler.installer or "", "install g++ with your system's package manager"
    )


def judge_cache(machine: Machine) -> Verdict:
    """Whether what is worth keeping could be kept. This version keeps nothing."""
    cache = machine.cache
    unused = "this version keeps nothing there"
    if not cache.is_writable:
        state = "is not writable" if cache.exists else "cannot be made"
        return Verdict(
            "no", f"{cache.folder} {state}; {unused}", f"set {cache.setting} to a folder you may write to"
        )
    return Verdict("yes", f"{cache.folder} {'is writable' if cache.exists else 'can be made'}; {unused}")


def judge_webui(machine: Machine) -> Verdict:
    """Which webui was named, and whether we and ControlNet are in it."""
    webui = machine.webui
    name = "--webui DIR or the variable SD_WEBUI_ROOT"
    if webui.found_by is None:
        return Verdict(
            "no", "none named, and this folder is in none", f"only if you use one: name it by {name}"
        )
    if webui.lacks:
        return Verdict(
            "no",
            f"{webui.found_by} names no webui: it lacks {' and '.join(webui.lacks)}",
            f"name by {name} the folder that has them",
        )
    if webui.is_forge:
        return Verdict("no", "a webui of the Forge family", "use AUTOMATIC1111's webui, or diffusers")
    control = "with" if webui.has_controlnet else "without"
    ours = "this extension is in it" if webui.has_us else "this extension is not in it"
    finding = f"{webui.version or 'of unknown version'}, {control} sd-webui-controlnet; {ours}"
    if not webui.has_us:
        return Verdict(
            "limited", finding, "put or link this folder into the webui's folder extensions, and restart it"
        )
    if webui.version is None or not webui.version.startswith(f"{TESTED_WEBUI}."):
        fix = f"nothing; if something is wrong, use {TESTED_WEBUI}.1"
        return Verdict("limited", f"{finding}; tested with {TESTED_WEBUI}.1 only", fix)
    return Verdict("yes", finding)
