"""Writes an offline HTML page about runs: their tables, and interactive maps of their codebooks.

The page is `page.html` with its style, scripts and tables filled in, and this JSON in the element `data`:

    runs      [{name, step, images, codebooks}]: `images` is an index into the list `images` below
    codebooks [{name, unit, event, about, size, shape, cell, context, sheet, grid, codes, views}]: `sheet` is a table of
              codes in rows and columns, with -1 for an empty cell; `codes` lists the codes of all images, each image
              row by row; `grid` is the shape [h', w'] of an image's codes; `context` is the width of a patch in codes
    views     [{label, tiles}] or [{label, values}]: one tile or one number per code; `tiles` is as in `images`
    images    [{src, count, columns, width, height}]: `src` is the data URL of a picture that contains `count` tiles
"""

import base64
import html
import io
import json
import math
import os
import pathlib
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from kvae.core.errors import InputError, require_extra, wrap_write_errors
from kvae.core.files import write_text
from kvae.models.codebook_views import CodebookView
from kvae.plots import index
from kvae.plots.tiles import join_tiles, lay_out_grid, scale_images
from kvae.runs.run import Run
from kvae.training.config.sections import load_data
from kvae.training.evaluate import num_pictured, samples

with require_extra("share"):
    from markdown_it import MarkdownIt
with require_extra("train"):
    from PIL import Image

HERE = pathlib.Path(__file__).parent

PIXELS_PER_VIEW = 2**20
"""Approximate limit on the number of pixels in the tiles of one view."""

TILE_SIDE = 32
"""Largest width and height of a code's tile in pixels."""


def write_page(path: os.PathLike | str, runs: Sequence[Run], text: str, title: str) -> None:
    """Writes the page atomically.

    Args:
      path: The HTML file.
      runs: Runs whose codebooks are shown, two side by side; may be empty.
      text: Tables and remarks in Markdown.
      title: Title of the page.

    Raises:
      InputError: A run has no codebook to show, its data set cannot be read, or the page cannot be written.
    """
    samples_by_dataset, run_entries = {}, []
    for run in runs:
        key = json.dumps(run.config["dataset"], sort_keys=True)
        if key not in samples_by_dataset:
            validation = load_data(run.config)[0].validation
            samples_by_dataset[key] = samples(validation, num_pictured(validation))
        examples = samples_by_dataset[key]
        views = run.model.codebook_views(run.variables, examples)
        if not views:
            model = type(run.model).__name__
            raise InputError(f"{run.workdir} is a run of {model}, which has no codebook to show; leave it out")
        codebooks = [_codebook_entry(name, view, examples["image"]) for name, view in views.items()]
        images = list(samples_by_dataset).index(key)
        run_entries.append({"name": run.workdir, "step": run.step, "images": images, "codebooks": codebooks})
    image_entries = [_tile_sheet(examples["image"]) for examples in samples_by_dataset.values()]
    data = json.dumps({"runs": run_entries, "images": image_entries}, separators=(",", ":"))
    parts = {
        "title": html.escape(title),
        "style": index.page_style() + (HERE / "page.css").read_text(),
        "text": f'<section class="tables" tabindex="0" aria-label="Tables">\n{_to_html(text)}</section>',
        "data": data.replace("<", "\\u003c"),
        "script": (HERE / "board.js").read_text() + (HERE / "side.js").read_text(),
    }
    with wrap_write_errors(path):
        write_text(path, string.Template((HERE / "page.html").read_text()).substitute(parts))


def _codebook_entry(name: str, view: CodebookView, images: np.ndarray) -> dict[str, Any]:
    """Returns an entry of `codebooks`, see the module's docstring."""
    side = min(TILE_SIDE, max(2, math.isqrt(PIXELS_PER_VIEW // view.codebook_size)))
    patches = view.mean_patches(images)
    patches = patches.reshape(-1, *patches.shape[-3:])
    views = [{"label": "mean image patch", "tiles": _tile_sheet(scale_images(patches, side))}]
    if view.decode_all is not None:
        views.insert(0, {"label": "decoded", "tiles": _tile_sheet(scale_images(view.decode_all(), side))})
    if (distances := view.u_matrix) is not None:
        values = [float(f"{value:.4g}") if np.isfinite(value) else None for value in distances.ravel()]
        views.append({"label": "distance to neighbours", "values": values})
    return {
        "name": view.label or name,
        "unit": view.code_name,
        "event": view.usage,
        "about": f"{view.code_name.capitalize()}s are arranged {view.arrangement}{view.fixed_codes_text}",
        "size": view.codebook_size,
        "shape": view.shape,
        "cell": view.cell,
        "context": view.patch_width,
        "sheet": lay_out_grid(view.shape).codes.tolist(),
        "grid": view.codes.shape[1:],
        "codes": view.codes.ravel().tolist(),
        "views": views,
    }


def _tile_sheet(images: np.ndarray) -> dict[str, Any]:
    """Joins images uint8 [n, h, w, 3] into one PNG picture; returns an entry of `images`."""
    count, height, width, _ = images.shape
    columns = math.ceil(math.sqrt(count))
    numbers = np.full(columns * math.ceil(count / columns), -1)
    numbers[:count] = np.arange(count)
    file = io.BytesIO()
    Image.fromarray(join_tiles(images, numbers.reshape(-1, columns), gap=0)).save(file, "PNG", optimize=True)
    source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"src": source, "count": count, "columns": columns, "width": width, "height": height}


def _to_html(text: str) -> str:
    return MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
