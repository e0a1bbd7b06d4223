"""Writes the model card of a shared run: README.md, which begins with metadata for the Hugging Face Hub."""

import contextlib
import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax

from kvae import data
from kvae.core.errors import short_repr
from kvae.core.image_arrays import IMAGE_STATISTICS
from kvae.core.markdown import to_markdown
from kvae.models.tokenisers import is_tokeniser
from kvae.training.best import LOSS
from kvae.training.workdir.metrics_file import value_of_replica

if TYPE_CHECKING:
    from kvae.runs.run import Run

HUB_METADATA = """---
library_name: kvae{license}
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


LIMITS = """- Trained only on the data set above; reconstructions of other images may be worse.
- Height and width of the images must be multiples of {stride} pixels.
- It encodes and decodes images; generating new ones needs a model of the codes, which is not included.
- Compression is lossy: details smaller than the image area of one code, such as small text, may change.
"""


def model_card(run: "Run", name: str, figures: Mapping[str, bytes], license: str | None = None) -> str:
    """Returns the card in Markdown, which begins with metadata for the Hugging Face Hub.

    Args:
      run: A `kvae.runs.Run`.
      name: The argument of `kvae.from_pretrained` in the card's example.
      figures: Contents of PNG files by name, relative to the card; the first is shown at the top.
      license: A licence identifier of the Hub, such as "apache-2.0".
    """
    title = name.rstrip("/").rpartition("/")[2]
    metadata = HUB_METADATA.format(license=f"\nlicense: {license}" if license else "")
    pictures = [_picture(file, content) for file, content in figures.items()]
    parts = [metadata, f"# {title}\n", _summary(run), *pictures[:1], "## Use\n", INSTALL, _use(run, name)]
    parts += _metrics_table(run)
    if pictures[1:]:
        parts += ["## Figures\n", *pictures[1:]]
    parts += ["## Training\n", _training(run)]
    if is_tokeniser(run.model):
        parts += ["## Limits\n", LIMITS.format(stride=max(run.model.code_strides.values()))]
    parts += ["## Licence\n", f"`{license}`\n" if license else "The author of this run has not stated a licence.\n"]
    return "\n".join(parts)


def _summary(run: "Run") -> str:
    name = run.config["model"]["name"]
    if not is_tokeniser(run.model):
        return f"A kvae model, `{name}`, after {run.step:,} training steps.\n"
    is_map = any(layer.is_map for layer in run.model.quantizers.values())
    order = " The codebook is a self-organising map: neighbouring codes decode to similar patches." if is_map else ""
    intro = (
        f"An image tokeniser in JAX (kvae's `{name}`, after {run.step:,} training steps). It turns images into "
        f"discrete codes and codes into images.{order} Method: {PAPER}.\n"
    )
    rows = [["codebook", "codes", "grid", "image area per position"]]
    for codebook, layer in run.model.quantizers.items():
        grid = " x ".join(map(str, layer.grid.shape)) if layer.grid is not None else "none"
        stride, count = run.model.code_strides[codebook], layer.n_codebooks
        per_position = "" if count is None else f", {count} codes each"
        rows.append([codebook, f"{layer.codebook_size:,}", grid, f"{stride} x {stride} px{per_position}"])
    return f"{intro}\n{to_markdown(rows)}\n"


def _use(run: "Run", name: str) -> str:
    if not is_tokeniser(run.model):
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
    last, cells = rows[-1], [["metric", "value"]]
    for name, metric in run.model.metrics.items():
        value, total = (value_of_replica(last.get(f"valid/{key}"), run.replica) for key in (name, metric.total))
        if value is None or not (metric.column or metric.panel):
            continue
        heading = metric.column or name.replace("_", " ")
        heading += f" ({metric.label})" if metric.column and metric.label else ""
        number = f"{value:,.{metric.decimals if metric.column else 4}f}"
        cells.append([heading, f"{number}{f' (N = {total:,})' if total else ''}"])
    return [f"## Validation metrics at step {last['step']:,}\n", to_markdown(cells) + "\n"]


def _training(run: "Run") -> str:
    dataset = run.config["dataset"]
    hidden = {"name", *IMAGE_STATISTICS, *data.local_paths(dataset)}
    fields = [f"{name} {short_repr(value)}" for name, value in dataset.items() if name not in hidden]
    details = f" ({', '.join(fields)})" if fields else ""
    count = sum(leaf.size for leaf in jax.tree.leaves(run.variables.get("params", {})))
    lines = [f"Trained on the data set `{dataset['name']}`{details}."]
    if run.metrics:  # a converted PyTorch model has no metrics, and its batch size is unknown
        batch = run.config["batch_size"]
        lines.append(f"{run.step:,} steps of {batch:,} images, {run.step * batch:,} in total, counting repetitions.")
    lines.append(f"{count:,} trained parameters. `config.json` has every field.\n")
    return " ".join(lines)


def _picture(file: str, content: bytes) -> str:
    """Returns a figure in Markdown, with the title and the caption that `kvae.plots.canvas.png_figure` stored in it."""
    texts = {}
    with contextlib.suppress(ImportError, OSError):
        from PIL import Image

        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            texts = image.text
    title = texts.get("Title", _title(file))
    caption = " ".join([_sentence(title), texts.get("Description", "")]).strip()
    return f"![{title}]({file})\n\n*{caption}*\n"


def _sentence(text: str) -> str:
    """Returns a text that ends with a punctuation mark."""
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _title(file: str) -> str:
    """Returns the name of a figure without text, such as "U-matrix"."""
    return file.rpartition("/")[2].removesuffix(".png").replace("_", " ").capitalize().replace("U matrix", "U-matrix")
