"""Imports run one way: a package may import only those that stand before it here."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = (
    "errors",
    "locks",
    "config",
    "data_pipeline",
    "runtime",
    "reporting",
    "cli",
    "engine",
    "engine_flags",
    "parallel",
    "memory",
    "models",
    "losses",
    "content",
    "adapting",
    "run",
    "run_folder",
    "checkpoints",
    "evaluation",
    "training",
    "recommending",
    "fitting",
    "serving",
    "studies",
    "tools",
    "main",
)
# These know nothing of the rest but how users are told of errors.
ALONE = ("config", "data_pipeline")
FILES = sorted((ROOT / "tssr_jax").rglob("*.py"))


def name_of(path):
    """ "losses.info_nce" of tssr_jax/losses/info_nce.py."""
    parts = path.relative_to(ROOT / "tssr_jax").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path):
    """Modules and names of the project that a file imports, but for types only."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(below)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for below in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def modules_of(path):
    """The project's modules that a file imports, e.g. {"losses.info_nce"}."""
    known = {name_of(file) for file in FILES}
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "tssr_jax":
            inner = [".".join(parts[1:end]) for end in range(len(parts), 1, -1)]
            yield next((module for module in inner if module in known), "")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_one_way(path):
    own = name_of(path).partition(".")[0]
    if not own:
        return  # the public names, imported when they are first used
    assert own in LAYERS, "add the package to LAYERS"
    for module in modules_of(path):
        other = module.partition(".")[0]
        assert other in LAYERS, module
        assert LAYERS.index(other) <= LAYERS.index(own), module
        if own in ALONE:
            assert other in {own, "errors"}, module


def test_no_two_modules_import_each_other():
    graph = {name_of(path): set(modules_of(path)) - {name_of(path)} for path in FILES}
    graph.pop("")
    while graph:
        leaves = {name for name, others in graph.items() if not others & graph.keys()}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: others for name, others in graph.items() if name not in leaves}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_modules_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 70, node.name
