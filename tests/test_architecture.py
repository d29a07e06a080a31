"""Imports run one way: each module may import only those that stand before it here."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    "tssr_jax.errors",
    "tssr_jax.command_line",
    "tssr_jax.huge_pages",
    "configs",
    "tssr_jax.collectives",
    "tssr_jax.catalogue",
    "tssr_jax.parallel",
    "tssr_jax.placement",
    "tssr_jax.processes",
    "tssr_jax.models",
    "tssr_jax.losses",
    "tssr_jax.metrics",
    "tssr_jax.list_metrics",
    "tssr_jax.optimizer",
    "tssr_jax.touched_rows",
    "data_pipeline.cache",
    "data_pipeline.fetching",
    "data_pipeline.tensorflow_cpu",
    "data_pipeline.sources",
    "data_pipeline.interactions",
    "data_pipeline.sequences",
    "data_pipeline.texts",
    "data_pipeline.records",
    "data_pipeline.builder",
    "data_pipeline.report",
    "data_pipeline.prepare",
    "data_pipeline.store",
    "data_pipeline.packing",
    "data_pipeline.ngrams",
    "data_pipeline.text_features",
    "data_pipeline.distinct",
    "data_pipeline.text_inputs",
    "data_pipeline.array_store",
    "data_pipeline.images",
    "data_pipeline.image_inputs",
    "data_pipeline.input_pipeline",
    "data_pipeline.counts",
    "tssr_jax.validation",
    "tssr_jax.run_config",
    "tssr_jax.preemption",
    "tssr_jax.compiled_programs",
    "tssr_jax.experiment",
    "tssr_jax.train_state",
    "tssr_jax.fingerprint",
    "tssr_jax.damage",
    "tssr_jax.checkpointing",
    "tssr_jax.reporting",
    "tssr_jax.ranking",
    "tssr_jax.top_k",
    "tssr_jax.evaluate",
    "tssr_jax.start",
    "tssr_jax.train",
    "tssr_jax.hlo",
    "tssr_jax.sizing",
    "tssr_jax.baselines",
    "tssr_jax.recommending",
    "tssr_jax.recommending.items",
    "tssr_jax.recommending.results",
    "tssr_jax.recommending.step",
    "tssr_jax.recommending.new_items",
    "tssr_jax.recommending.recommender",
    "tssr_jax.recommending.histories",
    "tssr_jax.recommending.lists_file",
    "tssr_jax.recommending.command",
    "tssr_jax.recommending.export",
    "tssr_jax.serving",
    "tssr_jax.serving.schemas",
    "tssr_jax.serving.limits",
    "tssr_jax.serving.monitoring",
    "tssr_jax.serving.title_search",
    "tssr_jax.serving.batching",
    "tssr_jax.serving.service",
    "tssr_jax.serving.app",
    "tssr_jax.serving.server",
    "tssr_jax.studies",
    "tssr_jax.studies.statistics",
    "tssr_jax.studies.designs",
    "tssr_jax.studies.trial",
    "tssr_jax.studies.budget",
    "tssr_jax.studies.slots",
    "tssr_jax.studies.groups",
    "tssr_jax.studies.findings",
    "tssr_jax.studies.plots",
    "tssr_jax.studies.report",
    "tssr_jax.studies.worker",
    "tssr_jax.studies.space",
    "tssr_jax.studies.search",
    "tssr_jax.studies.tuning",
    "tssr_jax.studies.runner",
    "tssr_jax.main",
)
FILES = sorted(
    path
    for folder in ("tssr_jax", "data_pipeline", "configs")
    for path in (ROOT / folder).rglob("*.py")
)


def layer(module):
    matches = [i for i, name in enumerate(LAYERS) if f"{module}.".startswith(f"{name}.")]
    return matches[-1] if matches else None


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_run_one_way(path):
    own = layer(module_name(path))
    if own is None:
        assert module_name(path) in {"tssr_jax", "data_pipeline"}, "add the module to LAYERS"
        return
    for name in imported(path):
        if name.split(".")[0] in ("tssr_jax", "data_pipeline", "configs"):
            assert layer(name) is not None and layer(name) <= own, name


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_modules_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
