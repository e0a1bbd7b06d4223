"""One page on runs, self-contained and offline: their tables, and maps of their codes to walk about in.

The page is `page.html`, filled in: style, scripts, tables, and as JSON in the element `data`

    runs      [{name, step, images, codebooks}]: `images` counts in the list below
    codebooks [{name, unit, event, about, size, shape, cell, context, sheet, grid, codes, views}]: `sheet` has the codes
              in rows and columns, -1 where none stands; `codes` those of all images, one after the other, each row by
              row of its `grid` [h', w']
    views     [{label, tiles}] or [{label, values}], one a code
    images    [{src, count, columns, width, height}]: a sheet of so many tiles, in rows, as a data URL; `tiles` are such
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

import numpy as np
from markdown_it import MarkdownIt

from kvae.core.errors import InputError, wrap_write_errors
from kvae.core.files import write_text
from kvae.models.codebook_views import CodebookView
from kvae.plots import index
from kvae.plots.tiles import join_tiles, lay_out_grid, scale_images
from kvae.runs.run import Run
from kvae.training.config.sections import load_data
from kvae.training.evaluate import num_pictured, samples

HERE = pathlib.Path(__file__).parent

TILES_PIXELS = 2**20
"""How many pixels the tiles of all codes of one view have at most, about."""

TILE_SIDE = 32
"""How many pixels a code's tile is high and wide at most."""


def write_page(path: os.PathLike | str, runs: Sequence[Run], text: str, title: str) -> None:
    """Writes the page, in one step.

    Args:
      path: of the page.
      runs: of which the codes are shown, two side by side; there may be none.
      text: tables and what there is to say of them, in Markdown.
      title: of the page.

    Raises:
      InputError: a run has no codes of images, its data set cannot be read, or the page cannot be written.
    """
    sets, shown = {}, []
    for run in runs:
        key = json.dumps(run.config["dataset"], sort_keys=True)
        if key not in sets:
            validation = load_data(run.config)[0].validation
            sets[key] = samples(validation, num_pictured(validation))
        found = run.model.codebook_views(run.variables, sets[key])
        if not found:
            model = type(run.model).__name__
            raise InputError(f"{run.workdir} is a run of {model}, which has no codes of images: leave it out")
        codebooks = [_codebook(name, view, sets[key]["image"]) for name, view in found.items()]
        shown.append({"name": run.workdir, "step": run.step, "images": list(sets).index(key), "codebooks": codebooks})
    images = [_tiles(examples["image"]) for examples in sets.values()]
    data = json.dumps({"runs": shown, "images": images}, separators=(",", ":"))
    words = {
        "title": html.escape(title),
        "style": index.page_style() + (HERE / "page.css").read_text(),
        "text": f'<section class="tables" tabindex="0" aria-label="Tables">\n{_html(text)}</section>',
        "data": data.replace("<", "\\u003c"),
        "script": (HERE / "board.js").read_text() + (HERE / "side.js").read_text(),
    }
    with wrap_write_errors(path):
        write_text(path, string.Template((HERE / "page.html").read_text()).substitute(words))


def _codebook(name, view: CodebookView, images):
    """What the page knows of a codebook."""
    room = min(TILE_SIDE, max(2, math.isqrt(TILES_PIXELS // view.codebook_size)))
    patches = view.mean_patches(images)
    views = [
        {"label": "mean real patch", "tiles": _tiles(scale_images(patches.reshape(-1, *patches.shape[-3:]), room))}
    ]
    if view.decode_all is not None:
        views.insert(0, {"label": "decoded alone", "tiles": _tiles(scale_images(view.decode_all(), room))})
    if (distances := view.u_matrix) is not None:
        values = [float(f"{value:.4g}") if np.isfinite(value) else None for value in distances.ravel()]
        views.append({"label": "distance to neighbours", "values": values})
    return {
        "name": view.label or name,
        "unit": view.code_name,
        "event": view.usage,
        "about": f"{view.code_name.capitalize()}s stand {view.arrangement}{view.fixed_codes_text}",
        "size": view.codebook_size,
        "shape": view.shape,
        "cell": view.cell,
        "context": view.patch_width,
        "sheet": lay_out_grid(view.shape).codes.tolist(),
        "grid": view.codes.shape[1:],
        "codes": view.codes.ravel().tolist(),
        "views": views,
    }


def _tiles(images):
    """Images uint8 [n, h, w, 3] as a sheet of tiles: a PNG file in a data URL."""
    from PIL import Image

    count, height, width, _ = images.shape
    columns = math.ceil(math.sqrt(count))
    numbers = np.full(columns * math.ceil(count / columns), -1)
    numbers[:count] = np.arange(count)
    file = io.BytesIO()
    Image.fromarray(join_tiles(images, numbers.reshape(-1, columns), gap=0)).save(file, "PNG", optimize=True)
    source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"src": source, "count": count, "columns": columns, "width": width, "height": height}


def _html(text):
    return MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
