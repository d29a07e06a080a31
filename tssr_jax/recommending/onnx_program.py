"""The program of an export for ONNX Runtime: classes in, classes out, by jax2onnx."""

import logging
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export
from jax.extend.core import jaxpr_as_fun

from tssr_jax.errors import UserError, shown

FILE = "recommend.onnx"
# Files of protocol buffers end at 2 GiB: larger tables stand beside the program.
_MOST_INSIDE = 2**30


def require_onnx(compute_dtype: str = "float32") -> None:
    """Raises UserError without the packages of the extra `onnx`, or for a model in bfloat16."""
    if compute_dtype != "float32":
        raise UserError(
            f"--formats has onnx, but the run computes in {compute_dtype} "
            "(--config.model.compute_dtype), in which ONNX Runtime has no products. Leave onnx out."
        )
    # It warns of each of its optional parts that is not there.
    logging.getLogger("jax2onnx").setLevel(logging.ERROR)
    try:
        import jax2onnx  # noqa: F401, PLC0415
        import onnx  # noqa: F401, PLC0415
        import onnxruntime  # noqa: F401, PLC0415
    except ImportError as error:
        raise UserError(
            f"--formats=onnx needs further packages ({error}): pip install 'tssr-jax[onnx]'. That "
            "installs an older Orbax; docs/guides/recommending.md shows how to keep yours."
        ) from error


def write_onnx(
    folder: Path, recommend: Callable[[jax.Array], tuple[jax.Array, jax.Array]], size: int
) -> None:
    """Writes recommend.onnx, for any number of histories of any length.

    Args:
      folder: of the export.
      recommend: maps histories, int32 [batch, length], to classes int32 [batch, top_k] and scores.
      size: bytes of its tables.

    Raises:
      UserError: if jax2onnx or ONNX Runtime lacks an operation of the model.
    """
    import onnx  # noqa: PLC0415
    import onnxruntime  # noqa: PLC0415
    from jax2onnx import to_onnx  # noqa: PLC0415

    history = jax.ShapeDtypeStruct(export.symbolic_shape("batch, length"), jnp.int32)
    # Traced before jax2onnx replaces parts of Flax by its own, which vmap does not know.
    program = jaxpr_as_fun(jax.make_jaxpr(recommend)(history))
    try:
        model = to_onnx(
            lambda history: tuple(program(history)),
            [history],
            model_name="recommend",
            input_names=["history"],
            output_names=["classes", "scores"],
        )
    except NotImplementedError as error:
        raise UserError(f"jax2onnx can't convert this model: {shown(error, 300)}") from error
    beside = size > _MOST_INSIDE
    onnx.save(model, folder / FILE, save_as_external_data=beside, location=f"{FILE}.data")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    try:
        onnxruntime.InferenceSession(folder / FILE, options)
    except Exception as error:  # its errors have no common class
        raise UserError(f"ONNX Runtime can't run this model: {shown(error, 300)}") from error
