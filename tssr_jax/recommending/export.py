"""A run in forms that need none of this package: `tssr export`.

    saved_model/         TensorFlow: ids in, ids out, item tables and content inside
    recommend.stablehlo  a program of jax.export: classes in, classes out
    recommend.onnx       the same for ONNX Runtime
    vectors.safetensors  item vectors with biases, user vectors: score = user . item + bias
    index/               vectors with biases as a faiss index, for `tssr serve --index`
    run/                 the run itself, to be used as --workdir on any machine (`run_folder`)
    items.parquet        id, title and training frequency of each class
    users.parquet        the user of each user vector
    export.json          the run and the settings of the export

docs/guides/recommending.md shows how each is read.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from etils import epath
from jax import export
from jax.experimental import jax2tf

from tssr_jax.config.files import write_json, write_tensors
from tssr_jax.config.saved import load_config
from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.errors import UserError, shown
from tssr_jax.evaluation.top_k import competing_scores
from tssr_jax.models.apply import newest
from tssr_jax.parallel.devices import exactly
from tssr_jax.recommending.index import require_products, write_index
from tssr_jax.recommending.items import Items
from tssr_jax.recommending.onnx_program import require_onnx, write_onnx
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.recommending.step import chosen_scorer
from tssr_jax.reporting import make_console, pairs_table
from tssr_jax.run import Run

FORMATS = ("saved_model", "stablehlo", "vectors", "run", "index", "onnx")
# By default all that need none of this package and fit the run.
_DEFAULT = FORMATS[:3]
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
FILE_NAME = "export.json"
_USERS_AT_A_TIME = 256


class ExportRequest(NamedTuple):
    """Arguments of `tssr export`.

    Attributes:
      output: the new folder.
      formats: some of `FORMATS`; None is those of the first three that the run can be written in.
      platforms: platforms that programs are compiled for, some of `PLATFORMS`.
      top_k: length of the programs' lists.
      new_items: table of items that training has not seen; None is none.
      raw_dir: see `Recommender.from_workdir`.
      sequences: format "run" keeps the users' sequences, so that it can be evaluated.
    """

    output: Path
    formats: Sequence[str] | None = None
    platforms: Sequence[str] = ("cpu",)
    top_k: int = 10
    new_items: Path | None = None
    raw_dir: str | None = None
    sequences: bool = False


def run_export(workdir: epath.Path, request: ExportRequest) -> None:
    """Writes to a temporary folder, renames it, and prints its contents.

    Raises:
      UserError: if the run or a value makes no sense, or the folder holds something else.
    """
    _check(request, workdir)
    recommender = Recommender.from_workdir(
        workdir, raw_dir=request.raw_dir, new_items=request.new_items
    )
    request = request._replace(formats=_formats(request.formats, recommender))
    if request.top_k < 1:
        raise UserError(f"--top_k is {request.top_k}; it must be at least 1.")
    request = request._replace(top_k=min(request.top_k, len(recommender.items.ids)))
    part = request.output.with_name(f"{request.output.name}.part-{os.getpid()}")
    part.mkdir(parents=True)
    try:
        _write(part, recommender, workdir, request)
        if request.output.exists():
            _require_replaceable(request.output, part)
            shutil.rmtree(request.output)
        part.replace(request.output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    rows = [
        (str(path.relative_to(request.output)), f"{_size(path) / 2**20:,.1f} MiB")
        for path in sorted(request.output.iterdir())
    ]
    about = json.loads((request.output / FILE_NAME).read_text())
    rows += [(f"{name} of the index", f"{own:.4f}") for name, own in about.get("index", {}).items()]
    make_console().print(pairs_table(str(request.output), rows))


def _require_replaceable(output: Path, new: Path) -> None:
    """Raises UserError if an export has files that a new one in its place lacks."""
    lost = sorted({path.name for path in output.iterdir()} - {path.name for path in new.iterdir()})
    if lost:
        raise UserError(
            f"--output={output} is an export that also has {shown(', '.join(lost))}, which would "
            "be deleted. Name another folder, or remove this one."
        )


def _check(request: ExportRequest, workdir: epath.Path) -> None:
    for name, values, known in (
        ("formats", FORMATS if request.formats is None else request.formats, FORMATS),
        ("platforms", request.platforms, PLATFORMS),
    ):
        if not values or set(values) - set(known):
            raise UserError(f"--{name} is {', '.join(values)}; known: {', '.join(known)}.")
    output = request.output
    if epath.Path(output).resolve() in [workdir.resolve(), *workdir.resolve().parents]:
        raise UserError(f"--output={output} holds the run in {workdir}: name another folder.")
    if output.exists() and not (output / FILE_NAME).is_file():
        raise UserError(f"--output={output} is there and no export: name another folder.")


def _formats(asked: Sequence[str] | None, recommender: Recommender) -> Sequence[str]:
    """The formats to write.

    Raises:
      UserError: for vectors of a model that products can't rank by, or a run with new items.
    """
    run = recommender.run
    if asked is not None and "run" in asked and len(recommender.items.ids) > run.data.num_items:
        raise UserError("--formats has run, which can't hold --new_items: export without them.")
    if asked is None:
        vectors = not recommender.model.memory and _knows_users(run)
        return _DEFAULT if vectors else [name for name in _DEFAULT if name != "vectors"]
    if "index" in asked:
        require_products(recommender)
    if "onnx" in asked:
        require_onnx(recommender.model.compute_dtype)
    if recommender.model.memory and "vectors" in asked:
        raise UserError(
            "--formats has vectors, but this run has memories (--config.model.memory), so its "
            "scores are not dot products of vectors. Leave vectors out."
        )
    return asked


def _knows_users(run: Run) -> bool:
    try:
        run.users()
    except UserError as error:
        print(f"Without user vectors, since there are no sequences here. {error}", flush=True)
        return False
    return True


def _write(part: Path, recommender: Recommender, workdir: epath.Path, request: Any) -> None:
    if "saved_model" in request.formats:
        _save_model(part / "saved_model", recommender, request.top_k, request.platforms)
    if "stablehlo" in request.formats:
        text = _stablehlo(recommend_program(recommender, request.top_k), request.platforms)
        (part / "recommend.stablehlo").write_bytes(text)
    if "onnx" in request.formats:
        size = sum(x.nbytes for x in jax.tree.leaves(recommender.tables))
        write_onnx(part, recommend_program(recommender, request.top_k), size)
    _items_table(recommender.items).write_parquet(part / "items.parquet")
    if "vectors" in request.formats:
        write_tensors(part / "vectors.safetensors", _vectors(recommender))
        users = pl.DataFrame({"user": recommender.run.users().data.user_ids})
        users.write_parquet(part / "users.parquet")
    measured = {}
    if "index" in request.formats:
        (part / "index").mkdir()
        measured = write_index(part / "index", recommender)
    if "run" in request.formats:
        recommender.save(part / "run", sequences=request.sequences)
    about = {
        "workdir": str(workdir),
        "top_k": request.top_k,
        "max_length": recommender.model.max_length,
        "num_items": len(recommender.items.ids),
        "streams": list(recommender.model.streams),
        "formats": list(request.formats),
        "platforms": list(request.platforms),
        "config": load_config(workdir).to_dict(),
        **({"index": measured} if measured else {}),
    }
    write_json(epath.Path(part / FILE_NAME), about)


def scores_program(recommender: Recommender) -> Callable[[Any, jax.Array], jax.Array]:
    """Returns the pure function `(tables, history) -> scores` that `recommend` ranks by.

    A history is int [batch, length], length >= 1, oldest first, padded on the left with 0. Scores
    are [batch, num_classes], -inf for padding, what is not allowed, and what is in the history (but
    for runs with `config.evaluate.keep_seen`). Items have times of their own, and the usual event;
    nothing is told of users (`data.user_fields`).
    """
    model, keep_seen = recommender.model, recommender.run.config.evaluate.keep_seen
    usual = recommender.items.usual_number

    def scores(tables: Any, history: jax.Array) -> jax.Array:
        params, content, choice = tables
        padding = jnp.zeros((history.shape[0], model.max_length), history.dtype)
        window = jnp.concatenate([padding, history], axis=1)[:, -model.max_length :]
        scorer = chosen_scorer(model, choice)
        with jax.default_matmul_precision("highest"):
            events = {"events": jnp.where(window > 0, usual, 0)} if usual else {}
            states, score = scorer(params, {"item_sequence": window, **events}, content)
            seen = history[:, :0] if keep_seen else history
            return competing_scores(score(states), seen, model.classes)

    return scores


def recommend_program(
    recommender: Recommender, top_k: int
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """Returns the function `history -> (classes, scores)`, [batch, top_k], best first.

    All tables are inside. Classes are 0 where fewer compete.
    """
    tables = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), recommender.tables)
    scores = scores_program(recommender)

    def recommend(history: jax.Array) -> tuple[jax.Array, jax.Array]:
        values, classes = jax.lax.top_k(scores(tables, history), top_k)
        return jnp.where(jnp.isfinite(values), classes, 0), values

    return recommend


def _stablehlo(recommend: Callable[..., Any], platforms: Sequence[str]) -> bytes:
    """The serialised program."""
    shape = export.symbolic_shape("batch, length")
    exported = export.export(jax.jit(recommend), platforms=list(platforms))(
        jax.ShapeDtypeStruct(shape, jnp.int32)
    )
    return bytes(exported.serialize())


def _save_model(
    folder: Path, recommender: Recommender, top_k: int, platforms: Sequence[str]
) -> None:
    """A signature `items: string [batch, length] -> items, titles, scores`; "" pads anywhere."""
    module = tf.Module()
    # A list of arrays: TensorFlow saves no tree with nodes of other libraries.
    leaves, structure = jax.tree.flatten(recommender.tables)
    module.tables = [tf.Variable(np.asarray(x), trainable=False) for x in leaves]
    scores_of = scores_program(recommender)
    items = recommender.items
    ids, titles = (tf.constant(["", *words]) for words in (items.ids, items.titles))
    classes = tf.range(1, len(items.ids) + 1, dtype=tf.int32)
    pairs = tf.lookup.KeyValueTensorInitializer(ids[1:], classes)
    module.class_of = tf.lookup.StaticHashTable(pairs, 0)
    converted = jax2tf.convert(
        lambda tables, history: scores_of(jax.tree.unflatten(structure, tables), history),
        polymorphic_shapes=[None, "(batch, length)"],
        native_serialization_platforms=tuple(platforms),
        with_gradient=False,
    )

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.string, "items")], autograph=False)
    def recommend(items: tf.Tensor) -> dict[str, tf.Tensor]:
        history = module.class_of.lookup(items)
        # Unknown ids and padding go to the left.
        order = tf.argsort(tf.cast(history > 0, tf.int32), axis=1, stable=True)
        history = tf.gather(history, order, batch_dims=1)
        # A converted program needs a column at least.
        scores = converted(module.tables, tf.pad(history, [[0, 0], [1, 0]]))
        # TensorFlow's own: it does not know JAX's operation yet.
        values, found = tf.math.top_k(scores, top_k)
        found = tf.where(tf.math.is_finite(values), found, 0)
        return {
            "items": tf.gather(ids, found),
            "titles": tf.gather(titles, found),
            "scores": values,
        }

    module.recommend = recommend
    tf.saved_model.save(module, str(folder), signatures={"serving_default": recommend})


def _items_table(items: Items) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "class": np.arange(1, len(items.ids) + 1),
            "item": items.ids,
            "title": items.titles,
            "times_seen": items.counts[1:],
        }
    )


def _vectors(recommender: Recommender) -> dict[str, np.ndarray]:
    """Vectors of the items, and of the users after their whole sequences."""
    params, content, choice = recommender.tables
    model, store = recommender.model, recommender.run.sequences
    weights = choice.weights

    @jax.jit
    @exactly
    def states(params: Any, content: Any, batch: dict[str, jax.Array]) -> jax.Array:
        return newest(model, params, batch, content).fused[:, -1]

    users = np.arange(store.lengths.size)
    vectors = np.zeros((users.size, weights.kernel.shape[0]), np.float32)
    for chunk, rows in store.chunks(users):
        window = tf.constant(store.lengths[chunk]), model.max_length
        whole = {"item_sequence": rows.windows(*window), "times": rows.times(*window)}
        whole |= {name: rows.last(column, *window) for name, column in store.side.items()}
        for start in range(0, chunk.size, _USERS_AT_A_TIME):
            some = slice(start, start + _USERS_AT_A_TIME)
            batch = {name: values[some].numpy() for name, values in whole.items()}
            number = len(batch["times"])
            fill = ((0, _USERS_AT_A_TIME - number), (0, 0))
            padded = {name: np.pad(values, fill) for name, values in batch.items()}
            vectors[chunk[some]] = np.asarray(states(params, content, padded))[:number]
    return {
        "item_vectors": np.ascontiguousarray(np.asarray(weights.kernel).T[1:]),
        "item_biases": np.ascontiguousarray(np.asarray(weights.bias)[1:]),
        "user_vectors": vectors,
    }


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
