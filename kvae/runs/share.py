"""A run as files that others can open without pickle: weights as safetensors, its config, and a model card."""

import functools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from kvae import data
from kvae.core.buckets import as_path, wrap_bucket_errors
from kvae.core.digests import digests
from kvae.core.errors import InputError, first_line, wrap_write_errors
from kvae.core.fields import short_repr
from kvae.core.files import check_target, replaced, write_text
from kvae.models.model import Model
from kvae.training.workdir.metrics_file import ROWS
from kvae.training.workdir.run_config import read_config_json

WEIGHTS = "model.safetensors"


def write(run, folder: os.PathLike | str, name: str) -> None:
    """Writes what `read` reads, and beside it the model card README.md, figures and metrics.jsonl.

    Args:
      run: a `kvae.runs.run.Run`.
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
    with wrap_write_errors(folder), wrap_bucket_errors(run.workdir):
        with replaced(folder / WEIGHTS) as incomplete:
            # Files that safetensors writes itself are for their owner only.
            incomplete.write_bytes(safetensors.numpy.save(flat, metadata=said))
        # Paths of this machine are not shared.
        paths = dict.fromkeys(data.local_paths(run.config["dataset"]), "")
        config = {**run.config, "dataset": {**run.config["dataset"], **paths}}
        write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
        # The pictures in a run's folder are those of its first replica.
        for file in sorted((as_path(run.workdir) / "figures").glob("*.png")) if run.replica == 0 else ():
            _copy(file, folder / "figures" / file.name)
            figures.append(f"figures/{file.name}")
        if (metrics := as_path(run.workdir) / ROWS).exists():
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
    config = read_config_json(str(folder))
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
    if not {"encode", "decode"} <= {*model.methods}:
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


HEAD = """---
library_name: kvae
tags:
- vq-vae
- image-tokenizer
- kohonen
- self-organizing-map
---
"""


PAPER = "[Topological Neural Discrete Representation Learning à la Kohonen](https://arxiv.org/abs/2302.07950)"


OPENING = """```python
import kvae

run = kvae.from_pretrained({name})
```
"""


USE = """```python
import kvae

run = kvae.from_pretrained({name})
images = run.read_images("a_folder")  # or files: uint8 [n, h, w, 3]
codes = run.encode(images)  # {codes}
same = run.decode(codes)  # uint8 again
```
"""


def card(run, name: str, figures: Sequence[str]) -> str:
    """The card in Markdown, with the metadata that Hugging Face's hub reads at its top.

    Args:
      run: a `kvae.runs.run.Run`.
      name: what `kvae.from_pretrained` is to be given.
      figures: PNG files, relative to the card.
    """
    parts = [HEAD, f"# {name.rstrip('/').rpartition('/')[2]}\n", _what_it_is(run), "## Use\n", _use(run, name)]
    if table := _metrics(run):
        parts += table
    if figures:
        parts.append("## Pictures\n")
        parts += [f"![{_caption(file)}]({file})\n\n*{_caption(file)}*\n" for file in figures]
    parts += ["## Training\n", _training(run)]
    return "\n".join(parts)


def _tokenises(run) -> bool:
    return {"encode", "decode"} <= {*run.model.methods}


def _what_it_is(run) -> str:
    model = run.config["model"]["name"]
    if not _tokenises(run):
        return f"A model of [kvae](https://arxiv.org/abs/2302.07950), `{model}`, after {run.step:,} steps.\n"
    ordered = any(layer.is_map for layer in run.model.quantizers.values())
    learned = "; near codes on its grid decode to similar patches" if ordered else ""
    lines = [
        f"An image tokeniser in JAX (`{model}` of kvae, after {run.step:,} steps): it turns images into discrete codes "
        f"and codes into images{learned}. The method is that of {PAPER}.\n",
        "| codebook | codes | grid | a code stands for |",
        "|---|---|---|---|",
    ]
    for name, layer in run.model.quantizers.items():
        grid = " x ".join(map(str, layer.grid.shape)) if layer.grid is not None else "none"
        stride, several = run.model.code_strides[name], f"{layer.n_codebooks} codes: " * (layer.n_codebooks is not None)
        lines.append(f"| {name} | {layer.codebook_size:,} | {grid} | {several}{stride} x {stride} px |")
    return "\n".join(lines) + "\n"


def _use(run, name: str) -> str:
    if not _tokenises(run):
        return OPENING.format(name=json.dumps(name))
    shapes = []
    for codebook, layer in run.model.quantizers.items():
        stride, several = run.model.code_strides[codebook], f", {layer.n_codebooks}" * (layer.n_codebooks is not None)
        shapes.append(f'"{codebook}": int32 [n, h/{stride}, w/{stride}{several}]')
    return USE.format(name=json.dumps(name), codes=f"{{{', '.join(shapes)}}}")


def _metrics(run) -> list[str]:
    """The last evaluation up to the run's step, as a table; empty where there is none."""
    rows = [row for row in run.metrics if row["step"] <= run.step and "valid/loss" in row]
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
    return [f"## On the validation set, at step {last['step']:,}\n", "\n".join(lines) + "\n"]


def _training(run) -> str:
    hidden = {"name", *data.local_paths(run.config["dataset"])}
    dataset = {name: value for name, value in run.config["dataset"].items() if name not in hidden}
    fields = ", ".join(f"{name} {short_repr(value)}" for name, value in dataset.items())
    text = f"Data set `{run.config['dataset']['name']}`" + (f" ({fields})" if fields else "")
    return f"{text}; `config.json` has every field.\n"


def _caption(file: str) -> str:
    return file.rpartition("/")[2].removesuffix(".png").replace("_", " ").capitalize().replace("U matrix", "U-matrix")
