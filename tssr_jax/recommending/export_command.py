"""Writes a run into the new folder --output, for programs without this package.

tssr export --workdir=runs/ml100k --output=exported --platforms=cpu,cuda,tpu
"""

from pathlib import Path

from absl import flags

from tssr_jax import cli
from tssr_jax.errors import UserError

_WORKDIR = cli.workdir_flag()
_RAW_DIR = cli.raw_dir_flag()
_OUTPUT = flags.DEFINE_string("output", None, "A new folder, or an export that this one replaces.")
_FORMATS = flags.DEFINE_list(
    "formats",
    None,
    "saved_model, stablehlo, vectors, run, index, onnx; by default those of the first three that "
    "fit.",
)
_PLATFORMS = flags.DEFINE_list(
    "platforms", "cpu", "Platforms of the exported programs: cpu, cuda, rocm, tpu."
)
_TOP_K = flags.DEFINE_integer("top_k", 10, "Items for each history.", 1)
_NEW_ITEMS = flags.DEFINE_string(
    "new_items", None, "Table of items that training has not seen, ranked by their content."
)
_SEQUENCES = flags.DEFINE_bool(
    "sequences", False, "Format run keeps the users' sequences, so that it can be evaluated."
)


def main() -> None:
    """Exports the run."""
    workdir = cli.required_workdir(_WORKDIR)
    if not _OUTPUT.value:
        raise UserError("--output=FOLDER is required to export.")
    from tssr_jax.recommending.export import ExportRequest, run_export

    request = ExportRequest(
        Path(_OUTPUT.value).expanduser(),
        _FORMATS.value,
        _PLATFORMS.value,
        _TOP_K.value,
        cli.optional_path(_NEW_ITEMS),
    )
    run_export(workdir, request._replace(raw_dir=_RAW_DIR.value, sequences=_SEQUENCES.value))
