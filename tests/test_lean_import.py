"""Importing lib_accel does nothing, and the files that the webui runs itself stay thin."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

HEAVY = ("torch", "gradio", "fastapi", "numpy")

# The host pins these and other extensions share its environment.
NEVER_INSTALLED = ("torch", "gradio", "numpy", "xformers", "protobuf", "pydantic")

_REPORT = """
import json, os, sys
modules, environment = set(sys.modules), dict(os.environ)
import lib_accel
loaded = sorted(set(sys.modules) - modules)
print(json.dumps({"loaded": loaded, "same_environment": dict(os.environ) == environment}))
"""


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


def _tree(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text("utf-8"), filename=name)


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level else str(node.module).split(".")[0]


def test_import_loads_nothing_heavy_and_leaves_the_environment() -> None:
    done = _python(_REPORT)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [name for name in report["loaded"] if name in HEAVY] == []
    assert report["same_environment"]


def test_import_prints_nothing() -> None:
    done = _python("import lib_accel")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_script_is_imports_and_one_call() -> None:
    name = "scripts/accel.py"
    assert len((ROOT / name).read_text("utf-8").splitlines()) <= 15
    body = _tree(name).body
    if ast.get_docstring(_tree(name)) is not None:
        body = body[1:]
    rest = [node for node in body if not isinstance(node, (ast.Import, ast.ImportFrom)) and not _is_all(node)]
    assert len(rest) == 1, [ast.unparse(node) for node in rest]
    assert isinstance(rest[0], ast.Expr)
    assert isinstance(rest[0].value, ast.Call)


def _is_all(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]


def test_script_imports_no_script_base_class_by_name() -> None:
    """Any Script class in the file's namespace is registered by the webui, its base class too."""
    from_host = [
        node
        for node in ast.walk(_tree("scripts/accel.py"))
        if isinstance(node, ast.ImportFrom) and node.module == "modules.scripts"
    ]
    assert not from_host


def test_preload_imports_argparse_only() -> None:
    assert set(_imported(_tree("preload.py"))) <= {"argparse", "typing", "__future__"}


def test_install_imports_nothing_of_ours_and_nothing_pinned_by_the_host() -> None:
    assert not set(_imported(_tree("install.py"))) & {"lib_accel", ".", *NEVER_INSTALLED}


def test_install_names_nothing_that_the_host_pins() -> None:
    assert _named_for_pip((ROOT / "install.py").read_text("utf-8")) == []


def test_a_pinned_package_in_a_pip_command_is_found() -> None:
    assert _named_for_pip("run(['pip', 'install', 'torch==2.1.2'])") == ["torch==2.1.2"]
    assert _named_for_pip("WANTED = ['pydantic[email]>=2']") == ["pydantic[email]>=2"]
    assert _named_for_pip("run_pip('install -U numpy', 'x')") == ["install -U numpy"]
    assert _named_for_pip("run(f'{python} -m pip install xformers')") == [" -m pip install xformers"]
    assert _named_for_pip("'''Never touches torch: no pip install torch.'''\nrun_pip('install einops')") == []


def _named_for_pip(source: str) -> list[str]:
    """Strings, docstrings left out, that are a requirement or a pip command which names a pinned package."""
    tree = ast.parse(source)
    names = "|".join(NEVER_INSTALLED)
    requirement = re.compile(rf"\s*({names})\s*(\[.*\])?\s*([<>=!~;@].*)?", re.IGNORECASE)
    command = re.compile(
        rf"\b(pip|install|uninstall)\b.*(?<![\w-])({names})(?![\w-])", re.IGNORECASE | re.DOTALL
    )
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in _docstrings(tree)
    ]
    return [text for text in texts if requirement.fullmatch(text) or command.search(text)]


def _docstrings(tree: ast.AST) -> set[int]:
    return {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
