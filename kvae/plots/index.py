"""A web page that shows a folder of figures and works offline."""

import html
import os
import pathlib
import string
from collections.abc import Iterable

from kvae.core.files import write_text

HERE = pathlib.Path(__file__).parent


def page_style() -> str:
    """Returns the CSS of kvae's pages, with a light and a dark scheme."""
    return (HERE / "style.css").read_text()


def write_index(folder: os.PathLike | str, names: Iterable[str], title: str) -> None:
    """Writes `index.html`, which shows PNG files of its folder with the captions that `canvas.png_figure` stored.

    Args:
      folder: folder with the PNG files.
      names: names of the files, without suffix, in the order of the page; names without a file are skipped.
      title: title of the page.
    """
    folder = pathlib.Path(folder)
    figures = "\n".join(_figure_html(path) for name in names if (path := folder / f"{name}.png").exists())
    template = string.Template((HERE / "index.html").read_text())
    page = template.substitute(title=html.escape(title), style=page_style(), figures=figures)
    write_text(folder / "index.html", page)


def _figure_html(path: pathlib.Path) -> str:
    from PIL import Image

    with Image.open(path, formats=["PNG"]) as image:
        width, height = image.size
        title = html.escape(image.text.get("Title", path.stem.replace("_", " ")))
        caption = html.escape(image.text.get("Description", ""))
    picture = f'<img src="{html.escape(path.name)}" alt="{title}" width="{width // 2}" height="{height // 2}">'
    return f"<figure>\n{picture}\n<figcaption>{caption}</figcaption>\n</figure>"
