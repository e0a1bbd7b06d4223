"""A run as files that others can open without pickle: weights as safetensors, its config, and a model card."""

import functools
import json
import os
import pathlib
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from kvae.buckets import errors_of_bucket, place
from kvae.card import card
from kvae.errors import InputError, errors_of_writing, first_line
from kvae.files import check_target, replaced, write_text
from kvae.models.model import Model
from kvae.training.digests import digests
from kvae.training.rows import ROWS
from kvae.training.workdir import config_of_run

WEIGHTS = "model.safetensors"


def write(run, folder: os.PathLike | str, name: str) -> None:
    """Writes what `read` reads, and beside it the model card README.md, figures and metrics.jsonl.

    Args:
      run: a `kvae.run.Run`.
      folder: made if it does not exist; files of an earlier call are replaced.
      name: what `kvae.from_pretrained` is to be given, for the card.

    Raises:
      InputError: the folder holds other files, or cannot be written.
    """
    folder = pathlib.Path(folder)
    check_target(folder, WEIGHTS)
    flat = {
        path: np.asarray(leaf, order="C")
        for path, leaf in flax.traverse_util.flatten_dict(run.variables, sep=".").items()
    }
    # One entry, for safetensors writes several in any order.
    said = {"kvae": json.dumps({"step": run.step, "replica": run.replica, "digests": digests(flat)})}
    figures = []
    with errors_of_writing(folder), errors_of_bucket(run.workdir):
        with replaced(folder / WEIGHTS) as incomplete:
            # Files that safetensors writes itself are for their owner only.
            incomplete.write_bytes(safetensors.numpy.save(flat, metadata=said))
        # Where the images lay is nobody's business.
        places = {field: "" for field in ("data_dir", "path") if field in run.config["dataset"]}
        config = {**run.config, "dataset": {**run.config["dataset"], **places}}
        write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
        # The pictures in a run's folder are those of its first replica.
        for file in sorted((place(run.workdir) / "figures").glob("*.png")) if run.replica == 0 else ():
            _copy(file, folder / "figures" / file.name)
            figures.append(f"figures/{file.name}")
        if (metrics := place(run.workdir) / ROWS).exists():
            _copy(metrics, folder / metrics.name)
        write_text(folder / "README.md", card(run, name, figures))


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
    with replaced(target) as incomplete:
        incomplete.write_bytes(source.read_bytes())


def read(folder: os.PathLike | str) -> tuple[dict, int, int, dict[str, Any]]:
    """Config, step, replica and variables of a run that `write` wrote.

    Raises:
      InputError: there is none, or its weights are damaged.
    """
    folder = pathlib.Path(folder)
    path = folder / WEIGHTS
    if not path.exists():
        hint = "; it is the folder of a run, which kvae.load opens" if (folder / "checkpoints").exists() else ""
        raise InputError(f"{folder} has no {WEIGHTS}{hint}")
    config = config_of_run(str(folder))
    flat, said = read_weights(path)
    about = json.loads(said.get("kvae", "{}"))
    saved = about.get("digests", {})
    if differ := [name for name, digest in digests(flat).items() if saved.get(name, digest) != digest]:
        raise InputError(f"{path} is damaged: {differ[0]} has not the digest that was saved; get it again")
    variables = flax.traverse_util.unflatten_dict(flat, sep=".")
    return config, about.get("step", 0), about.get("replica", 0), variables


def read_weights(path: os.PathLike | str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays by name of a safetensors file, and what its header says; an InputError if it is damaged."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is not readable as safetensors ({first_line(error)}); get it again") from error


def check_variables(model: Model, variables: dict[str, Any], where: str) -> None:
    """Raises InputError where the variables are not those of a model that encodes and decodes."""
    if not {"encode", "decode"} <= {*model.abilities}:
        return
    side = max(model.code_strides.values())
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)
    expected = jax.eval_shape(functools.partial(model.init, jax.random.key(0)), images)
    wanted, found = (flax.traverse_util.flatten_dict(tree, sep=".") for tree in (expected, variables))
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            raise InputError(f"{where} lacks {name}, {list(wanted[name].shape)} in this model")
        if name not in wanted:
            raise InputError(f"{where} has {name}, and this model has not")
        if found[name].shape != wanted[name].shape:
            hint = f"; a grid_shape of {len(found[name])} nodes would fit" if name.endswith("codewords") else ""
            shapes = f"{list(found[name].shape)}; the model takes {list(wanted[name].shape)} there"
            raise InputError(f"{where}: {name} is {shapes}{hint}")
