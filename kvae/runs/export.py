"""A run as programs that need neither kvae nor Flax: `jax.export` artefacts of encode and decode.

    encode = jax.export.deserialize(pathlib.Path("encode.jax_export").read_bytes())
    codes = encode.call(images)

Besides JAX that takes flatbuffers. One file serves CPUs, CUDA and TPUs. `export.json` says the shapes; the programs
normalise images themselves. JAX promises to read such files for six months: they serve, and do not archive.
"""

import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
from jax import export

from kvae.core.errors import InputError, wrap_write_errors
from kvae.core.files import check_target, replaced, write_text

PLATFORMS = ("cpu", "cuda", "tpu")

DESCRIPTION = "export.json"


def write(run, folder: os.PathLike | str, batch: str | int, size: int) -> None:
    """Writes `encode.jax_export`, `decode.jax_export` and, last, `export.json`: see `kvae.runs.run.Run.export`.

    Args:
      run: a `kvae.runs.run.Run` that encodes and decodes.
      folder: made if it does not exist.
      batch: a name, for a batch of any size, or the one size.
      size: edge of the images, in pixels.

    Raises:
      InputError: the folder holds other files or cannot be written, or the batch is neither a name nor a size.
    """
    if not (isinstance(batch, int) and batch > 0) and not (isinstance(batch, str) and batch.isidentifier()):
        raise InputError(f"batch is {batch!r}; it must be a name such as 'b', for any size, or a size such as 64")
    folder = pathlib.Path(folder)
    check_target(folder, DESCRIPTION)
    (images,) = export.symbolic_shape(batch) if isinstance(batch, str) else (batch,)
    images = jax.ShapeDtypeStruct((images, size, size, 3), jnp.uint8)
    encode, decode = (_program(run, method) for method in ("encode", "decode"))
    codes = jax.eval_shape(encode, images)
    programs = {
        "encode": {"inputs": {"images": images}, "outputs": codes},
        "decode": {"inputs": codes, "outputs": {"images": jax.eval_shape(decode, codes)}},
    }
    exported = {"encode": _exported(encode, images), "decode": _exported(decode, codes)}
    with wrap_write_errors(folder):
        for name, artefact in exported.items():
            with replaced(folder / f"{name}.jax_export") as incomplete:
                incomplete.write_bytes(artefact)
        described = {
            name: {"file": f"{name}.jax_export"} | {end: _described(specs) for end, specs in ends.items()}
            for name, ends in programs.items()
        }
        statistics = {name: list(getattr(run.model, name)) for name in ("mean", "std")}
        said = {"run": str(run.workdir), "step": run.step, "jax": jax.__version__, "platforms": list(PLATFORMS)}
        write_text(folder / DESCRIPTION, json.dumps({**said, **statistics, "programs": described}, indent=2) + "\n")


def _program(run, method):
    # The weights become constants of the program.
    return jax.jit(functools.partial(run.model.apply, jax.tree.map(jnp.asarray, run.variables), method=method))


def _exported(program, argument) -> bytes:
    return bytes(export.export(program, platforms=PLATFORMS)(argument).serialize())


def _described(specs) -> dict:
    return {
        name: {"dtype": str(spec.dtype), "shape": [n if isinstance(n, int) else str(n) for n in spec.shape]}
        for name, spec in specs.items()
    }
