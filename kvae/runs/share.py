"""Writes and reads shared runs: weights as safetensors, the config, figures, and a model card. Nothing is pickled."""

import functools
import json
import os
import pathlib
from collections.abc import Sequence
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
from kvae.core.files import check_target, replaced, write_text
from kvae.models.model import Model
from kvae.training.best import LOSS
from kvae.training.workdir.metrics_file import ROWS
from kvae.training.workdir.run_config import read_config_json

if TYPE_CHECKING:
    from kvae.runs.run import Run

WEIGHTS = "model.safetensors"


def save_shared(run: "Run", folder: os.PathLike | str, name: str) -> None:
    """Writes a run for others: model.safetensors, config.json, metrics.jsonl, figures, and README.md as its card.

    Args:
      run: A `kvae.runs.Run`.
      folder: New, empty, or written by an earlier call.
      name: What readers of the card pass to `kvae.from_pretrained`.

    Raises:
      InputError: The folder holds other files or cannot be written.
    """
    folder = pathlib.Path(folder)
    check_target(folder, WEIGHTS)
    arrays = {
        path: np.asarray(leaf, order="C")
        for path, leaf in flax.traverse_util.flatten_dict(run.variables, sep=".").items()
    }
    # A single entry, because safetensors writes several in random order.
    header = {"kvae": json.dumps({"step": run.step, "replica": run.replica, "digests": digests(arrays)})}
    paths = dict.fromkeys(data.local_paths(run.config["dataset"]), "")  # paths of this machine are not shared
    config = {**run.config, "dataset": {**run.config["dataset"], **paths}}
    with wrap_write_errors(folder), wrap_bucket_errors(run.workdir):
        with replaced(folder / WEIGHTS) as incomplete:
            # Files that safetensors itself writes are readable by their owner only.
            incomplete.write_bytes(safetensors.numpy.save(arrays, metadata=header))
        write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
        figures = []
        # The figures in a run's folder show its first replica.
        for file in sorted((as_path(run.workdir) / "figures").glob("*.png")) if run.replica == 0 else ():
            _copy(file, folder / "figures" / file.name)
            figures.append(f"figures/{file.name}")
        if (metrics := as_path(run.workdir) / ROWS).exists():
            _copy(metrics, folder / metrics.name)
        write_text(folder / "README.md", model_card(run, name, figures))


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
    with replaced(target) as incomplete:
        incomplete.write_bytes(source.read_bytes())


def read_shared(folder: os.PathLike | str) -> tuple[dict[str, Any], int, int, dict[str, Any]]:
    """Reads a run that `save_shared` wrote.

    Returns:
      The config, the step, the number of the replica, and the variables as nested dicts of NumPy arrays.

    Raises:
      InputError: The folder is not a shared run, or its weights are corrupted.
    """
    folder = pathlib.Path(folder)
    path = folder / WEIGHTS
    if not path.exists():
        hint = "; it is the folder of a run: open it with kvae.load" if (folder / "checkpoints").exists() else ""
        raise InputError(f"{folder} has no {WEIGHTS}{hint}")
    config = read_config_json(str(folder))
    arrays, header = read_weights(path)
    saved = json.loads(header.get("kvae", "{}"))
    expected = saved.get("digests", {})
    if differing := [name for name, digest in digests(arrays).items() if expected.get(name, digest) != digest]:
        raise InputError(f"{path} is corrupted: the checksum of {differing[0]} differs; get the file again")
    variables = flax.traverse_util.unflatten_dict(arrays, sep=".")
    return config, saved.get("step", 0), saved.get("replica", 0), variables


def read_weights(path: os.PathLike | str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads a safetensors file.

    Returns:
      The arrays by name, and the metadata of the header.

    Raises:
      InputError: The file is corrupted or is not a safetensors file.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({first_line(error)}); get it again") from error


def check_variables(model: Model, variables: dict[str, Any], source: str) -> None:
    """Raises InputError if variables do not have the names and shapes of an image tokeniser's.

    Models that do not encode and decode are not checked.

    Args:
      model: The model of the config.
      variables: Nested dicts of arrays.
      source: The file that they come from, for messages.
    """
    if not _is_tokeniser(model):
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
            hint = f"; a grid_shape of {len(arrays[name])} nodes would fit" if name.endswith("codewords") else ""
            shapes = f"{list(arrays[name].shape)}; this model expects {list(expected[name].shape)}"
            raise InputError(f"{source}: {name} has the shape {shapes}{hint}")


HUB_METADATA = """---
library_name: kvae
tags:
- vq-vae
- image-tokenizer
- kohonen
- self-organizing-map
---
"""

PAPER = "[Topological Neural Discrete Representation Learning à la Kohonen](https://arxiv.org/abs/2302.07950)"

INSTALL = """Install kvae, a library for JAX, from a clone of its repository:

```bash
pip install -e '.[train]'
```
"""

OPENING = """```python
import kvae

run = kvae.from_pretrained({name})
```
"""

USE = """```python
import kvae

run = kvae.from_pretrained({name})
images = run.read_images("a_folder")  # or a list of files: uint8 [n, h, w, 3]
codes = run.encode(images)  # {codes}
decoded = run.decode(codes)  # uint8 [n, h, w, 3]
```
"""


def model_card(run: "Run", name: str, figures: Sequence[str]) -> str:
    """Returns the card in Markdown, with the metadata that the Hugging Face Hub reads at its top.

    Args:
      run: A `kvae.runs.Run`.
      name: What readers pass to `kvae.from_pretrained`.
      figures: PNG files, relative to the card.
    """
    title = name.rstrip("/").rpartition("/")[2]
    parts = [HUB_METADATA, f"# {title}\n", _summary(run), "## Use\n", INSTALL, _use(run, name)]
    parts += _metrics_table(run)
    if figures:
        parts.append("## Figures\n")
        parts += [f"![{_caption(file)}]({file})\n\n*{_caption(file)}*\n" for file in figures]
    parts += ["## Training\n", _training(run)]
    return "\n".join(parts)


def _is_tokeniser(model: Model) -> bool:
    return {"encode", "decode"} <= {*model.methods}


def _summary(run: "Run") -> str:
    name = run.config["model"]["name"]
    if not _is_tokeniser(run.model):
        return f"A kvae model, `{name}`, after {run.step:,} training steps.\n"
    is_map = any(layer.is_map for layer in run.model.quantizers.values())
    order = " The codebook is a self-organising map: neighbouring codes decode to similar patches." if is_map else ""
    lines = [
        f"An image tokeniser in JAX (kvae's `{name}`, after {run.step:,} training steps). It turns images into "
        f"discrete codes and codes into images.{order} Method: {PAPER}.\n",
        "| codebook | codes | grid | image area per position |",
        "|---|---|---|---|",
    ]
    for codebook, layer in run.model.quantizers.items():
        grid = " x ".join(map(str, layer.grid.shape)) if layer.grid is not None else "none"
        stride, count = run.model.code_strides[codebook], layer.n_codebooks
        per_position = "" if count is None else f", {count} codes each"
        lines.append(f"| {codebook} | {layer.codebook_size:,} | {grid} | {stride} x {stride} px{per_position} |")
    return "\n".join(lines) + "\n"


def _use(run: "Run", name: str) -> str:
    if not _is_tokeniser(run.model):
        return OPENING.format(name=json.dumps(name))
    shapes = []
    for codebook, layer in run.model.quantizers.items():
        stride = run.model.code_strides[codebook]
        last = "" if layer.n_codebooks is None else f", {layer.n_codebooks}"
        shapes.append(f'"{codebook}": int32 [n, h/{stride}, w/{stride}{last}]')
    return USE.format(name=json.dumps(name), codes=f"{{{', '.join(shapes)}}}")


def _metrics_table(run: "Run") -> list[str]:
    """Returns a section with the last evaluation up to the run's step; empty if there is none."""
    rows = [row for row in run.metrics if row["step"] <= run.step and LOSS in row]
    if not rows:
        return []
    last, lines = rows[-1], ["| | |", "|---|---|"]
    for name, metric in run.model.metrics.items():
        value = last.get(f"valid/{name}")
        value = value[run.replica] if isinstance(value, list) else value
        if value is None or not (metric.column or metric.panel):
            continue
        heading = metric.column or name.replace("_", " ")
        heading += f" ({metric.label})" if metric.column and metric.label else ""
        lines.append(f"| {heading} | {value:.{metric.decimals if metric.column else 4}f} |")
    return [f"## Validation metrics at step {last['step']:,}\n", "\n".join(lines) + "\n"]


def _training(run: "Run") -> str:
    dataset = run.config["dataset"]
    hidden = {"name", *data.local_paths(dataset)}
    fields = [f"{name} {short_repr(value)}" for name, value in dataset.items() if name not in hidden]
    details = f" ({', '.join(fields)})" if fields else ""
    return f"Trained on the data set `{dataset['name']}`{details}. `config.json` has every field.\n"


def _caption(file: str) -> str:
    return file.rpartition("/")[2].removesuffix(".png").replace("_", " ").capitalize().replace("U matrix", "U-matrix")
