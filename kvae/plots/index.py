"""A folder of figures as one page, to be read offline."""

import html
import os
import pathlib
import string
from collections.abc import Iterable

from kvae.core.files import write_text

HERE = pathlib.Path(__file__).parent


def style() -> str:
    """The style of kvae's pages, light and dark, in CSS."""
    return (HERE / "page.css").read_text()


def write_index(folder: os.PathLike | str, names: Iterable[str], title: str) -> None:
    """Writes `index.html`, which shows PNG files of its folder with the words that `canvas.drawing` gave them.

    Args:
      folder: of the PNG files.
      names: which are shown, without their endings; those that are not there are left out.
      title: of the page.
    """
    folder = pathlib.Path(folder)
    figures = "\n".join(_figure(path) for name in names if (path := folder / f"{name}.png").exists())
    template = string.Template((HERE / "index.html").read_text())
    write_text(folder / "index.html", template.substitute(title=html.escape(title), style=style(), figures=figures))


def _figure(path):
    from PIL import Image

    with Image.open(path, formats=["PNG"]) as image:
        width, height = image.size
        title = html.escape(image.text.get("Title", path.stem.replace("_", " ")))
        words = html.escape(image.text.get("Description", ""))
    picture = f'<img src="{html.escape(path.name)}" alt="{title}" width="{width // 2}" height="{height // 2}">'
    return f"<figure>\n{picture}\n<figcaption>{words}</figcaption>\n</figure>"
