"""Ranks the whole catalogue for each history of --input and writes the lists to --output.

    tssr recommend --workdir=runs/ml100k --input=histories.jsonl --output=lists.jsonl

Files are .jsonl, .csv or .parquet (docs/guides/recommending.md). --input may be a folder of such
files, and --output=lists.parquet/ a folder that gets a file for each block of histories; then the
same command goes on from what is whole. --engine=ray spreads the work (docs/guides/cluster.md).
"""

from pathlib import Path

from absl import flags

from tssr_jax import cli, engine_flags
from tssr_jax.errors import UserError

_WORKDIR = cli.workdir_flag()
_RAW_DIR = cli.raw_dir_flag()
_INPUT = flags.DEFINE_string("input", None, "Histories: .jsonl, .csv or .parquet, or a folder.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "Where the lists go: .jsonl, .csv or .parquet; a folder ends in /."
)
_TOP_K = flags.DEFINE_integer("top_k", 10, "Items for each history.", 1)
_KEEP_SEEN = flags.DEFINE_bool(
    "keep_seen",
    None,
    "Also recommend what is in the history; by default as the run was evaluated.",
)
_NEW_ITEMS = flags.DEFINE_string(
    "new_items", None, "Table of items that training has not seen, ranked by their content."
)
_ONLY_ITEMS = flags.DEFINE_string(
    "only_items", None, "File with the ids that may be recommended, one a line."
)
_NEVER_ITEMS = flags.DEFINE_string(
    "never_items", None, "File with ids that may not be recommended, one a line."
)
flags.adopt_module_key_flags(engine_flags)


def main() -> None:
    """Writes the lists and prints what became of the histories."""
    workdir = cli.required_workdir(_WORKDIR)
    if not _INPUT.value or not _OUTPUT.value:
        raise UserError("--input=FILE and --output=FILE are required to recommend.")
    from tssr_jax.recommending.recommend import Request, run_recommend

    request = Request(
        Path(_INPUT.value).expanduser(),
        _OUTPUT.value,
        top_k=_TOP_K.value,
        keep_seen=_KEEP_SEEN.value,
        new_items=cli.optional_path(_NEW_ITEMS),
        only=cli.optional_path(_ONLY_ITEMS),
        never=cli.optional_path(_NEVER_ITEMS),
        raw_dir=_RAW_DIR.value,
        place=engine_flags.place(),
    )
    run_recommend(workdir, request)
