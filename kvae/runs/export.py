"""Exports the encoder and decoder of a run as JAX programs that need neither kvae nor Flax.

    encode = jax.export.deserialize(pathlib.Path("served/encode.jax_export").read_bytes())
    codes = encode.call(images)

To run them you need only JAX and flatbuffers. Each file works on CPU, CUDA and TPU. Images are uint8 [b, h, w, 3]; the
programs normalise them. `export.json` lists the inputs and outputs with their shapes, and the range of codes.

The exported decoder does not check codes: a code outside 0 to K - 1 is decoded as some other code, without an error.
Check codes from other sources against `range` in `export.json` first.

Exported programs expire: JAX guarantees to read them for only six months. To renew them, export the run again with a
current JAX.
"""

import functools
import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import export

from kvae.core.errors import InputError, require_extra, short_repr, wrap_write_errors
from kvae.core.fields import Count, Size, validate
from kvae.core.files import check_target, replaced, target_path, write_text
from kvae.core.image_arrays import IMAGE_STATISTICS
from kvae.models.model import Model

if TYPE_CHECKING:
    from kvae.runs.run import Run

PLATFORMS = ("cpu", "cuda", "tpu")

DESCRIPTION, SUFFIX = "export.json", ".jax_export"


def export_run(run: "Run", folder: os.PathLike | str, batch: str | int, size: int) -> None:
    """Writes `encode.jax_export`, `decode.jax_export` and, last, `export.json`; see `kvae.runs.Run.export`.

    Args:
      run: A `kvae.runs.Run` whose model encodes and decodes.
      folder: New, empty, or written by an earlier call.
      batch: A letter for any batch size, or one fixed size.
      size: Edge of the images in pixels.

    Raises:
      InputError: The folder holds other files or cannot be written, or the batch or the size is invalid.
    """
    with require_extra("share"):
        import flatbuffers  # noqa: F401  # JAX serialises with it but does not declare it
    count, size = _batch_count(batch), validate("size", size, Size)
    folder = target_path("the folder", folder)
    check_target(folder, DESCRIPTION, unfinished=tuple(f"{name}{SUFFIX}" for name in ("encode", "decode")))
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
        **{name: list(getattr(run.model, name)) for name in IMAGE_STATISTICS},
        "programs": {
            name: {"file": f"{name}{SUFFIX}"} | {side: _as_json(specs, run.model) for side, specs in sides.items()}
            for name, sides in shapes.items()
        },
    }
    with wrap_write_errors(folder):
        for name, artefact in artefacts.items():
            with replaced(folder / f"{name}{SUFFIX}") as incomplete:
                incomplete.write_bytes(artefact)
        write_text(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")


def _compile(run: "Run", method: str) -> Callable:
    """Returns a method of the run's model as a compiled function; the weights are constants of the program."""
    return jax.jit(functools.partial(run.model.apply, jax.tree.map(jnp.asarray, run.variables), method=method))


def _serialise(program: Callable, argument: Any) -> bytes:
    return bytes(export.export(program, platforms=PLATFORMS)(argument).serialize())


def _as_json(specs: Mapping[str, jax.ShapeDtypeStruct], model: Model) -> dict[str, Any]:
    entries = {}
    for name, spec in specs.items():
        entries[name] = {"dtype": str(spec.dtype), "shape": [n if isinstance(n, int) else str(n) for n in spec.shape]}
        if name in model.quantizers:
            entries[name]["range"] = [0, model.quantizers[name].codebook_size - 1]
    return entries


def _batch_count(batch: object) -> Any:
    """Returns the size of the batch axis: an integer, or a symbol of `jax.export`."""
    try:
        if isinstance(batch, str) and batch.isidentifier():
            return export.symbolic_shape(batch)[0]
        return validate("batch", batch, Count)
    except ValueError as error:  # an InputError, or the error of JAX for a reserved word such as "mod"
        raise InputError(
            f"batch is {short_repr(batch)}; it must be a letter such as 'b' for any size, or a size such as 64"
        ) from error
