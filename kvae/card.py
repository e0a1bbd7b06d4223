"""The model card of a run: a page that says what it is, how good it is, and how to open it."""

import json
from collections.abc import Sequence

from kvae.fields import shown

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
      run: a `kvae.run.Run`.
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
    return {"encode", "decode"} <= {*run.model.abilities}


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
        grid = " x ".join(map(str, layer.layout.shape)) if layer.layout is not None else "none"
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
    dataset = {name: value for name, value in run.config["dataset"].items() if name not in ("name", "data_dir", "path")}
    fields = ", ".join(f"{name} {shown(value)}" for name, value in dataset.items())
    text = f"Data set `{run.config['dataset']['name']}`" + (f" ({fields})" if fields else "")
    return f"{text}; `config.json` has every field.\n"


def _caption(file: str) -> str:
    return file.rpartition("/")[2].removesuffix(".png").replace("_", " ").capitalize().replace("U matrix", "U-matrix")
