"""Writes and reads shared runs: weights as safetensors, the config, figures, and a model card. Nothing is pickled."""

import functools
import json
import os
import pathlib
import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from kvae import data
from kvae.core.buckets import as_path, wrap_bucket_errors
from kvae.core.digests import digests
from kvae.core.errors import InputError, first_line, short_repr, wrap_write_errors
from kvae.core.fields import Natural, validate_fields
from kvae.core.files import check_file, check_target, replaced, target_path, write_text
from kvae.models.model import Model
from kvae.models.tokenisers import is_tokeniser
from kvae.runs import card
from kvae.training.config.sections import validate_run
from kvae.training.workdir.metrics_file import ROWS
from kvae.training.workdir.run_config import read_config_json

if TYPE_CHECKING:
    from kvae.runs.run import Run

WEIGHTS = "model.safetensors"

REMEDY = "copy or download it again"


def metadata(step: Natural = 0, replica: Natural = 0, digests: dict[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """Returns the entry "kvae" in the header of model.safetensors. The parameters are the schema of the entry.

    Args:
      step: Step of the checkpoint.
      replica: Index of the replica, if several seeds were trained at once.
      digests: Digest of each array by name; see `kvae.core.digests`.
    """
    return {"step": step, "replica": replica, "digests": dict(digests)}


FIGURES_WITHOUT_IMAGES = ("u_matrix", "curves", "hit_map", "train_hit_map", "winners", "train_winners")
"""Figures that show no images of the data set; with several codebooks, a suffix follows the name."""

LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")


def save_shared(
    run: "Run", folder: os.PathLike | str, name: str, *, images: bool = False, license: str | None = None
) -> None:
    """Writes a run for sharing: model.safetensors, config.json, metrics.jsonl, figures, and a card, README.md.

    Args:
      run: A `kvae.runs.Run`.
      folder: New, empty, or written by an earlier call.
      name: The argument of `kvae.from_pretrained` in the card's example.
      images: See `kvae.runs.Run.save_pretrained`.
      license: See `kvae.runs.Run.save_pretrained`.

    Raises:
      InputError: The folder holds other files or cannot be written.
    """
    folder = target_path("the folder", folder)
    check_target(folder, WEIGHTS)
    if license is not None and not (isinstance(license, str) and LICENSE.fullmatch(license)):
        raise InputError(f"license is {short_repr(license)}; it must be a licence identifier such as 'apache-2.0'")
    arrays = {
        path: np.asarray(leaf, order="C")
        for path, leaf in flax.traverse_util.flatten_dict(run.variables, sep=".").items()
    }
    # A single entry, because safetensors writes several entries in random order.
    header = {"kvae": json.dumps(metadata(run.step, run.replica, digests(arrays)))}
    paths = dict.fromkeys(data.local_paths(run.config["dataset"]), "")  # local paths are not shared
    config = {**run.config, "dataset": {**run.config["dataset"], **paths}}
    with wrap_write_errors(folder), wrap_bucket_errors(run.workdir):
        with replaced(folder / WEIGHTS) as incomplete:
            # A file that safetensors writes itself is readable only by its owner.
            incomplete.write_bytes(safetensors.numpy.save(arrays, metadata=header))
        write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
        files = _figures(run, images)
        for file in (as_path(run.workdir) / "figures").glob("*.png"):  # an earlier call may have shared images
            if f"figures/{file.name}" not in files:
                (folder / "figures" / file.name).unlink(missing_ok=True)
        for file, content in files.items():
            with replaced(folder / file) as incomplete:
                incomplete.write_bytes(content)
        if (metrics := as_path(run.workdir) / ROWS).exists():
            _copy(metrics, folder / metrics.name)
        write_text(folder / "README.md", card.model_card(run, name, files, license))


def _figures(run: "Run", images: bool) -> dict[str, bytes]:
    """Returns the contents of the figures to share, by file; the card shows the first at its top."""
    if run.replica:
        return {}  # the figures in a run's folder show its first replica
    files = sorted((as_path(run.workdir) / "figures").glob("*.png"))
    allowed = re.compile("|".join(f"{name}(_.*)?" for name in FIGURES_WITHOUT_IMAGES))
    files = [file for file in files if images or allowed.fullmatch(file.stem)]
    files.sort(key=lambda file: not file.stem.startswith("codebook_map" if images else "u_matrix"))
    return {f"figures/{file.name}": file.read_bytes() for file in files}


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
    with replaced(target) as incomplete:
        incomplete.write_bytes(source.read_bytes())


def read_shared(folder: os.PathLike | str) -> tuple[dict[str, Any], int, int, dict[str, Any]]:
    """Reads a run that `save_shared` wrote.

    Returns:
      The config, the step, the index of the replica, and the variables as nested dicts of NumPy arrays.

    Raises:
      InputError: The folder is not a shared run, or its weights are corrupted.
    """
    folder = pathlib.Path(folder)
    path = folder / WEIGHTS
    if not path.exists():
        hint = "; it is a run folder; open it with kvae.load" if (folder / "checkpoints").exists() else ""
        raise InputError(f"{folder} has no {WEIGHTS}{hint}")
    config = validate_run(read_config_json(str(folder)), str(folder))
    arrays, header = read_weights(path)
    saved = _read_metadata(path, header)
    expected = saved["digests"]
    if expected and (missing := sorted(expected.keys() ^ arrays.keys())):
        raise InputError(f"{path} is corrupted: {missing[0]} is missing or unexpected; {REMEDY}")
    if differing := [name for name, digest in digests(arrays).items() if expected.get(name, digest) != digest]:
        raise InputError(f"{path} is corrupted: the checksum of {differing[0]} differs; {REMEDY}")
    return config, saved["step"], saved["replica"], _nested(path, arrays)


def _read_metadata(path: pathlib.Path, header: dict[str, str]) -> dict[str, Any]:
    try:
        saved = json.loads(header.get("kvae", "{}"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is corrupted: its metadata 'kvae' is not JSON ({first_line(error)})") from error
    if not isinstance(saved, dict):
        raise InputError(f"{path} is corrupted: its metadata 'kvae' is {short_repr(saved)}; it must be a dict")
    try:
        return validate_fields("metadata", saved, metadata)
    except InputError as error:
        raise InputError(f"{path} is corrupted: {error}") from error


def _nested(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns arrays as nested dicts; dots in a name separate the keys."""
    for name in sorted(arrays):
        parts = name.split(".")
        parents = (".".join(parts[:depth]) for depth in range(1, len(parts)))
        if "" in parts:
            raise InputError(f"{path} is corrupted: {short_repr(name)} is not a valid array name; {REMEDY}")
        if parent := next((parent for parent in parents if parent in arrays), None):
            raise InputError(f"{path} is corrupted: {parent} is an array but contains {name}; {REMEDY}")
    return flax.traverse_util.unflatten_dict(arrays, sep=".")


def read_weights(path: os.PathLike | str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads a safetensors file.

    Returns:
      The arrays by name, and the metadata of the header.

    Raises:
      InputError: The file is corrupted or is not a safetensors file.
    """
    try:
        check_file(path)  # safetensors would block on a pipe
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, TypeError, ValueError, AttributeError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({first_line(error)}); {REMEDY}") from error


def check_variables(model: Model, variables: dict[str, Any], source: str) -> None:
    """Raises InputError if the names, shapes or types of variables do not match a model.

    Models that do not encode and decode are not checked.

    Args:
      model: The model of the config.
      variables: Nested dicts of arrays.
      source: The file that the variables come from, for messages.
    """
    if not is_tokeniser(model):
        return
    side = max(model.code_strides.values())
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)
    initial = jax.eval_shape(functools.partial(model.init, jax.random.key(0)), images)
    expected, arrays = (flax.traverse_util.flatten_dict(tree, sep=".") for tree in (initial, variables))
    for name in sorted(expected.keys() | arrays.keys()):
        if name not in arrays:
            raise InputError(f"{source} lacks {name}, which has the shape {list(expected[name].shape)} in this model")
        if name not in expected:
            raise InputError(f"{source} has {name}, which this model does not have")
        if arrays[name].shape != expected[name].shape:
            shape, fitting = list(arrays[name].shape), list(expected[name].shape)
            fits_other_grid = name.endswith("codewords") and shape[1:] == fitting[1:] and len(shape) == len(fitting)
            hint = f"; a grid_shape of {shape[0]} nodes would fit" if fits_other_grid else ""
            raise InputError(f"{source}: {name} has the shape {shape}; this model expects {fitting}{hint}")
        if arrays[name].dtype.kind != np.dtype(expected[name].dtype).kind:
            dtypes = f"{arrays[name].dtype}; this model expects {expected[name].dtype}"
            raise InputError(f"{source}: {name} has the type {dtypes}")
