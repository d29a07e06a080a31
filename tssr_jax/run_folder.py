"""What a workdir keeps of its run's items, so that the run works wherever the folder is.

    catalogue/items/                ids, titles, texts, names of pictures (TFRecords, as prepared)
    catalogue/report.json           of the preparation
    catalogue/arrays.safetensors    what the model reads of the items, and their training counts
    catalogue/users/                sequences for evaluation, only if an export asked for them
    catalogue/run.json              which data they belong to
    catalogue/digests.json          SHA-256 of all these
    params.safetensors              the best parameters, only in a run that was exported, or whose
                                    encoder was trained

Nothing here tells what a single user did, unless sequences were asked for.
"""

import functools
import hashlib
import json
import shutil
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load, load_file, save

from tssr_jax.config.files import read_signed, write_json, write_tensors, write_whole
from tssr_jax.data_pipeline import cache, digests
from tssr_jax.data_pipeline.builder import ITEMS, USERS
from tssr_jax.data_pipeline.prepare import PreparedData, find_prepared, prepare
from tssr_jax.data_pipeline.report import FILE as REPORT
from tssr_jax.data_pipeline.store import open_store
from tssr_jax.errors import UserError, shown
from tssr_jax.memory.popularity import Popularity
from tssr_jax.memory.scores import Memories, Neighbours
from tssr_jax.models.content import Content
from tssr_jax.parallel import processes, sharding
from tssr_jax.parallel.sharding import ENCODER_SUFFIX
from tssr_jax.run import (
    DATA_FILE,
    ItemArrays,
    Run,
    Users,
    are_alike,
    assembled,
    identity_of,
    require_same_data,
)
from tssr_jax.runtime import keep_compiled_programs

FOLDER = "catalogue"
_ARRAYS = "arrays.safetensors"
# Of runs without checkpoints, or with an encoder in them.
_PARAMS, _STEP, _DIGEST = "params.safetensors", "step", "sha256"
_OWNER = "run.json"


def save_catalogue(
    workdir: epath.Path,
    data: PreparedData,
    arrays: ItemArrays,
    *,
    keep: bool = False,
    users: Path | None = None,
) -> None:
    """Writes workdir/catalogue, whole or not at all; data.json is there already.

    Args:
      workdir: the run's folder, here or gs://.
      data: the prepared data set.
      arrays: what the model reads of the items.
      keep: leave one that is whole as it is: the run goes on.
      users: a prepared data set whose sequences are kept as well; None keeps none.
    """
    target = workdir / FOLDER
    whole = has_catalogue(workdir) and ("://" in str(target) or not digests.damage(Path(target)))
    if keep and whole:
        return
    with tempfile.TemporaryDirectory() as temporary:
        local = Path(temporary)
        shutil.copytree(data.folder / ITEMS, local / ITEMS)
        shutil.copy(data.folder / REPORT, local / REPORT)
        if users:
            shutil.copytree(users / USERS, local / USERS)
        write_tensors(local / _ARRAYS, _flat(arrays))
        write_json(epath.Path(local) / _OWNER, identity_of(workdir))
        digests.write(local)
        part = target.with_name(f"{FOLDER}.incomplete")
        if part.exists():
            part.rmtree()
        cache.copy_tree(epath.Path(local), part)
    if target.exists():
        target.rmtree()
    part.rename(target)


def has_catalogue(workdir: epath.Path) -> bool:
    """Whether a workdir keeps what is needed of its run's items."""
    return (workdir / FOLDER / digests.FILE).exists()


def load_run(workdir: epath.Path, config: ml_collections.ConfigDict) -> Run:
    """The run of a workdir by what the workdir keeps of its items.

    Users are read when they are asked for: from the folder, else from the cache, else the raw files
    are prepared.

    Args:
      workdir: the run's folder, here or gs://.
      config: of the run.

    Raises:
      UserError: if a file of the folder is damaged.
    """
    folder = _local(workdir / FOLDER, config.data.cache_dir)
    if reason := digests.damage(folder):
        raise UserError(
            f"{workdir / FOLDER} is damaged ({reason}). Copy it anew; or remove it, and repeat the "
            "training command of the run, which makes it again from the raw files."
        )
    keep_compiled_programs(cache.local_folder(config.data.cache_dir))
    saved = read_signed(workdir / DATA_FILE)
    owner = folder / _OWNER  # older versions wrote none
    if owner.exists():
        _require_own(json.loads(owner.read_text()), workdir, workdir / FOLDER)
    data = PreparedData(saved["key"], folder, json.loads((folder / REPORT).read_text()))

    @functools.cache
    def here() -> PreparedData | None:
        return data if (folder / USERS).exists() else find_prepared(config.data, data.key)

    @functools.cache
    def users() -> Users:
        known = here()
        if known is None:
            known = prepare(config.data)
            require_same_data(known, None, workdir)
        return Users(known, open_store(known, config))

    arrays = _from_flat(load_file(folder / _ARRAYS))
    key, known_here = saved["features_key"], lambda: here() is not None
    return assembled(config, data, users, arrays, key, has_users=known_here)


def save_trained(
    workdir: epath.Path,
    run: Run,
    params: Any,
    step: int,
    content: Content,
    *,
    users: Path | None = None,
) -> None:
    """Writes the catalogue and the parameters of a trained model; all processes must call this.

    Content encoders are left out: the catalogue has the features that they compute.

    Args:
      workdir: the run's folder.
      run: the run.
      params: on the devices, each with the whole catalogue; a dictionary of dictionaries.
      step: when they were the best.
      content: what the model reads of the items, by these parameters.
      users: see `save_catalogue`.
    """
    number = run.data.num_items + 1
    own = {name: tree for name, tree in params.items() if not name.endswith(ENCODER_SUFFIX)}
    tables = (content.features, content.memories, content.neighbours)
    features, memories, neighbours = jax.tree.map(processes.to_host, tables)
    host = jax.tree.map(processes.to_host, own)
    if not processes.is_first():
        return
    features = {name: table[:number] for name, table in features.items()}
    arrays = ItemArrays(run.counts, features, memories, neighbours, run.categories)
    save_catalogue(workdir, run.data, arrays, users=users)
    flat = flatten_dict(host, sep="/")
    flat = {name: np.ascontiguousarray(values) for name, values in flat.items()}
    _, tensors = _header_and_tensors(save(flat))
    about = {_STEP: str(step), _DIGEST: hashlib.sha256(tensors).hexdigest()}
    write_whole(workdir / _PARAMS, save(flat, about | identity_of(workdir)))


def _require_own(owner: Mapping[str, Any], workdir: epath.Path, part: epath.Path) -> None:
    """Raises UserError if a part of a run's folder is of a run on other data."""
    if not are_alike(owner, identity_of(workdir)):
        raise UserError(
            f"{part} is not of the run in {workdir}: it belongs to other data. Copy the whole run "
            "anew."
        )


def _header_and_tensors(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The two parts of a safetensors file; raises ValueError or struct.error if it has none."""
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def remove_trained(workdir: epath.Path) -> None:
    """Removes what `save_trained` wrote, since training goes on."""
    (workdir / _PARAMS).unlink(missing_ok=True)
    if (workdir / FOLDER).exists():
        (workdir / FOLDER).rmtree()


def saved_params(workdir: epath.Path, run: Run) -> tuple[Any, int] | None:
    """The parameters that `save_trained` wrote, on the devices, and their step; None without.

    Raises:
      UserError: if they are those of another model, or damaged.
    """
    path = workdir / _PARAMS
    if not path.exists():
        return None
    content = path.read_bytes()
    try:
        params = unflatten_dict(load(content), sep="/")
        header, tensors = _header_and_tensors(content)
        about = header["__metadata__"]
        step, digest = int(about[_STEP]), about.get(_DIGEST)  # older versions wrote no digest
        if digest not in (None, hashlib.sha256(tensors).hexdigest()):
            raise ValueError("its digest is another")
    except (SafetensorError, ValueError, KeyError, struct.error) as error:
        raise UserError(f"{path} is damaged ({shown(error)}). Copy it anew.") from error
    _require_own(about, workdir, path)
    expected = jax.eval_shape(run.initial_params)
    params = sharding.pad_classes(params, run.model.classes)
    found, wanted = (
        {"/".join(name): x.shape for name, x in flatten_dict(tree).items()}
        for tree in (params, expected)
    )
    if found != wanted:
        name = min(found.items() ^ wanted.items())[0]
        raise UserError(f"{path} does not fit the model of {workdir}/config.json: see {name}.")
    return run.devices.place(params, run.params_layout), step


def _local(folder: epath.Path, cache_dir: str) -> Path:
    """A folder on this machine; one of a bucket is copied to the cache."""
    if "://" not in str(folder):
        return Path(folder)
    return cache.copy_of(cache_dir, folder, (folder / digests.FILE).read_text())


def _flat(arrays: ItemArrays) -> dict[str, np.ndarray]:
    flat = {"counts": arrays.counts}
    flat |= {f"features/{name}": values for name, values in arrays.features.items()}
    if arrays.categories:
        flat["categories"] = np.frombuffer(json.dumps(arrays.categories).encode(), np.uint8)
    if arrays.neighbours is not None:
        flat |= _named("neighbours", arrays.neighbours)
    if (memories := arrays.memories) is not None:
        numbers = ("frequency", "decay", "least_length")
        flat |= {f"memories/{name}": getattr(memories, name) for name in numbers}
        for name, table in memories.tables.items():
            flat |= _named(f"memories/tables/{name}", table)
        if memories.popularity is not None:
            flat |= _named("memories/popularity", memories.popularity)
    return {name: np.asarray(values, order="C") for name, values in flat.items()}


def _named(name: str, values: Any) -> dict[str, Any]:
    return {f"{name}/{field}": value for field, value in values._asdict().items()}


def _from_flat(flat: Mapping[str, np.ndarray]) -> ItemArrays:
    def below(name: str) -> dict[str, np.ndarray]:
        start = f"{name}/"
        return {key.removeprefix(start): v for key, v in flat.items() if key.startswith(start)}

    memories, neighbours = None, below("neighbours")
    if "memories/frequency" in flat:
        names = dict.fromkeys(key.split("/")[0] for key in below("memories/tables"))
        tables = {name: Neighbours(**below(f"memories/tables/{name}")) for name in names}
        popularity = below("memories/popularity")
        memories = Memories(
            tables,
            Popularity(**popularity) if popularity else None,
            flat["memories/frequency"],
            flat["memories/decay"],
            flat.get("memories/least_length", np.array(1, np.int32)),
        )
    return ItemArrays(
        flat["counts"],
        below("features"),
        memories,
        Neighbours(**neighbours) if neighbours else None,
        tuple(json.loads(flat["categories"].tobytes())) if "categories" in flat else (),
    )
