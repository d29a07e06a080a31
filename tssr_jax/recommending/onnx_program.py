"""The program of an export for ONNX Runtime: classes in, classes out, by jax2onnx."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export
from jax.extend.core import jaxpr_as_fun

from tssr_jax.errors import UserError

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
    try:
        import jax2onnx  # noqa: F401, PLC0415
        import onnx  # noqa: F401, PLC0415
        import onnxruntime  # noqa: F401, PLC0415
    except ImportError as error:
        raise UserError(
            f"--formats=onnx needs further packages ({error}): pip install 'tssr-jax[onnx]', or "
            "jax2onnx with --no-deps, and what it names, to keep the version of Orbax."
        ) from error


def write_onnx(
    folder: Path, recommend: Callable[[jax.Array], tuple[jax.Array, jax.Array]], size: int
) -> None:
    """Writes recommend.onnx, for any number of histories of any length.

    Args:
      folder: of the export.
      recommend: maps histories, int32 [batch, length], to classes int32 [batch, top_k] and scores.
      size: bytes of its tables.
    """
    import onnx  # noqa: PLC0415
    import onnxruntime  # noqa: PLC0415
    from jax2onnx import to_onnx  # noqa: PLC0415

    history = jax.ShapeDtypeStruct(export.symbolic_shape("batch, length"), jnp.int32)
    # Traced before jax2onnx replaces parts of Flax by its own, which vmap does not know.
    program = jaxpr_as_fun(jax.make_jaxpr(recommend)(history))
    model = to_onnx(
        lambda history: tuple(program(history)),
        [history],
        model_name="recommend",
        input_names=["history"],
        output_names=["classes", "scores"],
    )
    beside = size > _MOST_INSIDE
    onnx.save(model, folder / FILE, save_as_external_data=beside, location=f"{FILE}.data")
    onnxruntime.InferenceSession(folder / FILE)  # fails for a program that it can't run
