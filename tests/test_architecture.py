"""Imports run one way: each module may import only those that stand before it here."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    "tssr_jax.errors",
    "tssr_jax.cli",
    "tssr_jax.runtime",
    "configs",
    "tssr_jax.parallel.collectives",
    "tssr_jax.parallel.catalogue",
    "tssr_jax.parallel.devices",
    "tssr_jax.parallel.sharding",
    "tssr_jax.parallel.processes",
    "tssr_jax.models",
    "tssr_jax.losses",
    "tssr_jax.evaluation.metrics",
    "tssr_jax.evaluation.list_metrics",
    "tssr_jax.training.optimizer",
    "tssr_jax.training.sparse_rows",
    "tssr_jax.data_pipeline.cache",
    "tssr_jax.data_pipeline.fetching",
    "tssr_jax.data_pipeline.tensorflow_cpu",
    "tssr_jax.data_pipeline.sources",
    "tssr_jax.data_pipeline.interactions",
    "tssr_jax.data_pipeline.sequences",
    "tssr_jax.data_pipeline.texts",
    "tssr_jax.data_pipeline.records",
    "tssr_jax.data_pipeline.builder",
    "tssr_jax.data_pipeline.report",
    "tssr_jax.data_pipeline.prepare",
    "tssr_jax.data_pipeline.store",
    "tssr_jax.data_pipeline.packing",
    "tssr_jax.content.ngrams",
    "tssr_jax.content.text_features",
    "tssr_jax.content.distinct",
    "tssr_jax.content.text_inputs",
    "tssr_jax.content.array_store",
    "tssr_jax.content.pictures",
    "tssr_jax.content.image_inputs",
    "tssr_jax.data_pipeline.input_pipeline",
    "tssr_jax.data_pipeline.counts",
    "tssr_jax.config.validation",
    "tssr_jax.config.saved",
    "tssr_jax.runtime",
    "tssr_jax.runtime",
    "tssr_jax.run",
    "tssr_jax.training.step",
    "tssr_jax.checkpoints.fingerprint",
    "tssr_jax.checkpoints.corruption",
    "tssr_jax.checkpoints.checkpointer",
    "tssr_jax.reporting",
    "tssr_jax.evaluation.ranking",
    "tssr_jax.evaluation.top_k",
    "tssr_jax.evaluation.evaluate",
    "tssr_jax.training.state",
    "tssr_jax.training.loop",
    "tssr_jax.tools.hlo",
    "tssr_jax.tools.sizing",
    "tssr_jax.evaluation.baselines",
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
    for folder in ("tssr_jax", "tssr_jax.data_pipeline", "configs")
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
        assert module_name(path) in {"tssr_jax", "tssr_jax.data_pipeline"}, (
            "add the module to LAYERS"
        )
        return
    for name in imported(path):
        if name.split(".")[0] in ("tssr_jax", "tssr_jax.data_pipeline", "configs"):
            assert layer(name) is not None and layer(name) <= own, name


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_modules_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
