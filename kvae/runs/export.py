"""Exports the encoder and decoder of a run as JAX programs that need neither kvae nor Flax.

    encode = jax.export.deserialize(pathlib.Path("served/encode.jax_export").read_bytes())
    codes = encode.call(images)

To run them you need only JAX and flatbuffers. One file works on CPU, CUDA and TPU. Images are uint8 [b, h, w, 3]; the
programs normalise them. `export.json` lists the inputs and outputs with their shapes.

Exported programs expire: JAX promises to read them for six months after the version that wrote them. Export the run
again with a current JAX to renew them.
"""

import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import export

from kvae.core.errors import InputError, require_extra, wrap_write_errors
from kvae.core.files import check_target, replaced, write_text

if TYPE_CHECKING:
    from kvae.runs.run import Run

PLATFORMS = ("cpu", "cuda", "tpu")

DESCRIPTION = "export.json"


def export_run(run: "Run", folder: os.PathLike | str, batch: str | int, size: int) -> None:
    """Writes `encode.jax_export`, `decode.jax_export` and, last, `export.json`; see `kvae.runs.Run.export`.

    Args:
      run: A `kvae.runs.Run` whose model encodes and decodes.
      folder: New, empty, or written by an earlier call.
      batch: A letter for any batch size, or one fixed size.
      size: Edge of the images in pixels.

    Raises:
      InputError: The folder holds other files or cannot be written, or the batch is neither a letter nor a size.
    """
    with require_extra("share"):
        import flatbuffers  # noqa: F401  # JAX serialises with it without declaring it
    if not (isinstance(batch, int) and batch > 0) and not (isinstance(batch, str) and batch.isidentifier()):
        raise InputError(f"batch is {batch!r}; it must be a letter such as 'b' for any size, or a size such as 64")
    folder = pathlib.Path(folder)
    check_target(folder, DESCRIPTION)
    (count,) = export.symbolic_shape(batch) if isinstance(batch, str) else (batch,)
    images = jax.ShapeDtypeStruct((count, size, size, 3), jnp.uint8)
    encode, decode = (_compile(run, method) for method in ("encode", "decode"))
    codes = jax.eval_shape(encode, images)
    shapes = {
        "encode": {"inputs": {"images": images}, "outputs": codes},
        "decode": {"inputs": codes, "outputs": {"images": jax.eval_shape(decode, codes)}},
    }
    artefacts = {"encode": _serialise(encode, images), "decode": _serialise(decode, codes)}
    description = {
        "run": str(run.workdir),
        "step": run.step,
        "jax": jax.__version__,
        "platforms": list(PLATFORMS),
        **{name: list(getattr(run.model, name)) for name in ("mean", "std")},
        "programs": {
            name: {"file": f"{name}.jax_export"} | {side: _as_json(specs) for side, specs in sides.items()}
            for name, sides in shapes.items()
        },
    }
    with wrap_write_errors(folder):
        for name, artefact in artefacts.items():
            with replaced(folder / f"{name}.jax_export") as incomplete:
                incomplete.write_bytes(artefact)
        write_text(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")


def _compile(run: "Run", method: str) -> Callable:
    # The weights become constants of the program.
    return jax.jit(functools.partial(run.model.apply, jax.tree.map(jnp.asarray, run.variables), method=method))


def _serialise(program: Callable, argument: Any) -> bytes:
    return bytes(export.export(program, platforms=PLATFORMS)(argument).serialize())


def _as_json(specs: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    return {
        name: {"dtype": str(spec.dtype), "shape": [n if isinstance(n, int) else str(n) for n in spec.shape]}
        for name, spec in specs.items()
    }
