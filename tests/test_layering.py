"""Imports in lib_accel point one way, and each foreign package is imported in its own room only."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

LIBRARY = Path(__file__).resolve().parent.parent / "lib_accel"

# From the ground up. A room imports rooms of lower layers and itself, never a neighbour or a higher one.
LAYERS = (
    ("errors", "device", "requirements"),
    ("options", "report", "advice", "pictures", "difference", "handshake"),
    ("kernels",),
    ("attention",),
    ("blocks", "host", "audit", "painter"),
    ("layouts", "lora"),
    ("storage", "graphs", "patching"),
    ("way", "noted"),
    ("tuning", "channels_last", "packing"),
    ("choice", "formats"),
    ("measured",),
    ("calls", "steps"),
    ("bound", "whole"),
    ("bindings",),
    ("launching",),
    ("engine",),
    ("hosts", "doctor", "ui"),
    ("bench",),
    ("demo", "tasks"),
    ("operations",),
    ("api",),
    ("extension",),
)
RANK = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}

# Where diffusers and what belongs to it is known.
_AROUND_DIFFUSERS = ("hosts/diffusers.py", "layouts/", "bench/", "demo/")

# Who may import it: files, or rooms with a slash at the end. Paths are relative to lib_accel.
ALLOWED_IN = {
    "modules": (
        "hosts/webui.py",
        "hosts/webui_painting.py",
        "hosts/webui_comparison.py",
        "hosts/forge.py",
        "extension.py",
    ),
    "gradio": ("ui/",),
    "fastapi": ("api/",),
    "starlette": ("api/",),
    "pydantic": ("api/",),
    "triton": ("kernels/",),
    "xformers": ("attention/", "bench/", "doctor/"),
    "sageattention": ("attention/",),
    "diffusers": _AROUND_DIFFUSERS,
    "transformers": _AROUND_DIFFUSERS,
    "peft": _AROUND_DIFFUSERS,
    "ldm": (),
    "sgm": (),
}

# Rooms that are imported where the packages above are absent: inside functions, if at all.
LATE = ("layouts/",)

# Outside the layers: they gather the public names, and must cost nothing to import.
LAZY = ("__init__.py", "__main__.py")


def judge(path: str, source: str) -> list[str]:
    """What is wrong with the imports of `source`, which stands at `path` relative to lib_accel."""
    where = PurePosixPath(path)
    tree = ast.parse(source)
    lazy = path in LAZY
    room = where.parts[0].removesuffix(".py")
    if not lazy and room not in RANK:
        return [f"{path}: {room!r} has no layer; give it a rank in LAYERS"]
    faults = []
    for line, name in _imports(tree, where):
        fault = _foreign_fault(path, name) or (None if lazy else _layer_fault(room, name))
        if fault:
            faults.append(f"{path}:{line}: {fault}")
    late = path.startswith(LATE)
    faults += [
        f"{path}:{line}: imports {name} at once; do it inside a function"
        for line, name in _eager(tree, where)
        if lazy or (late and name.split(".")[0] in ALLOWED_IN and not _foreign_fault(path, name))
    ]
    return faults


def _foreign_fault(path: str, name: str) -> str | None:
    package = name.split(".")[0]
    allowed = ALLOWED_IN.get(package)
    if allowed is None or any(
        path == place or (place.endswith("/") and path.startswith(place)) for place in allowed
    ):
        return None
    return f"imports {name}; {package} is allowed in {', '.join(allowed) or 'no file of lib_accel'}"


def _layer_fault(room: str, name: str) -> str | None:
    package, _, inner = name.partition(".")
    if package != "lib_accel" or inner == "__version__":
        return None
    target = inner.split(".")[0]
    if target not in RANK:
        return f"imports {name}, which is no room with a rank; import from the room that defines it"
    if target == room or RANK[target] < RANK[room]:
        return None
    relation = "beside it" if RANK[target] == RANK[room] else "above it"
    return f"{room} imports {name}, but {target} stands {relation}"


def _imports(tree: ast.AST, where: PurePosixPath) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of what is imported at any depth, by a call with a literal name too."""
    for node in ast.walk(tree):
        for name in _names(node, where):
            yield node.lineno, name


def _eager(tree: ast.Module, where: PurePosixPath) -> Iterator[tuple[int, str]]:
    """Line and name of what of lib_accel or of others is imported when the module itself is."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or _is_for_types_only(node):
            continue
        for line, name in _imports(node, where):
            if name.split(".")[0] not in sys.stdlib_module_names:
                yield line, name


def _is_for_types_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _names(node: ast.AST, where: PurePosixPath) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = _absolute(node, where)
        # `from lib_accel import errors` names a room, `from lib_accel.errors import AccelError` is in one.
        return [f"{base}.{alias.name}" for alias in node.names] if base == "lib_accel" else [base]
    if isinstance(node, ast.Call) and ast.unparse(node.func) in _IMPORT_CALLS and node.args:
        first = node.args[0]
        return [first.value] if isinstance(first, ast.Constant) and isinstance(first.value, str) else []
    return []


_IMPORT_CALLS = ("__import__", "import_module", "importlib.import_module")


def _absolute(node: ast.ImportFrom, where: PurePosixPath) -> str:
    if not node.level:
        return node.module or ""
    package = ("lib_accel", *where.parts[:-1])
    parts = package[: len(package) - node.level + 1]
    return ".".join((*parts, node.module) if node.module else parts)


def test_every_import_in_lib_accel_is_allowed() -> None:
    files = sorted(LIBRARY.rglob("*.py"))
    assert files, f"no Python file in {LIBRARY}"
    faults = [
        fault
        for file in files
        for fault in judge(file.relative_to(LIBRARY).as_posix(), file.read_text("utf-8"))
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("blocks/res.py", "from lib_accel.engine import Engine"),
        ("blocks/res.py", "from lib_accel import engine"),
        ("blocks/res.py", "import lib_accel.layouts.ldm"),
        ("blocks/res.py", "from ..choice import choose"),
        ("blocks/res.py", "from .. import choice"),
        ("blocks/res.py", "from lib_accel import Engine"),
        ("lora/fusion.py", "from lib_accel.layouts import FAMILIES"),
        ("ui/tab.py", "from lib_accel.api.routes import status"),
        ("doctor/live.py", "from lib_accel.hosts.diffusers import accelerate"),
        ("bench/cli.py", "from lib_accel.demo.cli import main"),
        ("blocks/res.py", "def late():\n    import lib_accel.engine"),
        ("blocks/res.py", "import importlib\nimportlib.import_module('lib_accel.engine')"),
    ],
)
def test_import_of_a_neighbour_or_higher_room_is_reported(path: str, source: str) -> None:
    assert len(judge(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("engine.py", "from modules import shared"),
        ("hosts/base.py", "def late():\n    import modules.shared"),
        ("hosts/webui.py", "import gradio as gr"),
        ("extension.py", "from fastapi import FastAPI"),
        ("options.py", "from pydantic import BaseModel"),
        ("ui/tab.py", "from starlette.requests import Request"),
        ("blocks/res.py", "try:\n    import triton.language as tl\nexcept ImportError:\n    pass"),
        ("hosts/webui.py", "import diffusers"),
        ("hosts/webui.py", "from ldm.modules.attention import CrossAttention"),
        ("layouts/sgm.py", "import sgm"),
        ("layouts/diffusers.py", "import diffusers"),
        ("layouts/clip.py", "from transformers.models import clip"),
        ("lora/formats.py", "def late():\n    import peft"),
        ("doctor/live.py", "def late():\n    import diffusers"),
        ("__init__.py", "def accelerate():\n    import gradio"),
    ],
)
def test_foreign_import_outside_its_room_is_reported(path: str, source: str) -> None:
    assert len(judge(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("errors.py", "import logging\nimport torch"),
        ("blocks/res.py", "from lib_accel.kernels.norm import group_norm\nfrom .weights import ResWeights"),
        ("bench/plot.py", "from lib_accel import __version__, errors"),
        ("hosts/webui.py", "from modules import shared\nfrom lib_accel.hosts.base import Host"),
        ("hosts/diffusers.py", "import diffusers"),
        ("layouts/clip.py", "def late():\n    import transformers"),
        ("layouts/diffusers.py", "if TYPE_CHECKING:\n    import diffusers"),
        (
            "bench/models.py",
            "import diffusers\nimport peft\nfrom lib_accel.hosts.diffusers import accelerate",
        ),
        ("demo/show.py", "import transformers\nfrom lib_accel.bench.timing import median"),
        ("kernels/norm.py", "import triton"),
        ("extension.py", "from lib_accel.ui import tab\nfrom modules import script_callbacks"),
    ],
)
def test_allowed_import_is_not_reported(path: str, source: str) -> None:
    assert judge(path, source) == []


def test_room_without_a_rank_is_reported() -> None:
    assert "give it a rank" in judge("helpers/text.py", "")[0]


@pytest.mark.parametrize("path", LAZY)
def test_package_root_may_import_only_inside_functions(path: str) -> None:
    assert judge(path, "import sys\n\ndef late():\n    from lib_accel.engine import Engine") == []
    assert judge(path, "if TYPE_CHECKING:\n    from lib_accel.engine import Engine") == []
    assert len(judge(path, "from lib_accel.engine import Engine")) == 1
    assert len(judge(path, "import torch")) == 1
