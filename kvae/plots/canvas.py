"""The parts that all figures share: kvae's style, the header, and the PNG file, which is replaced atomically.

Matplotlib is imported only when something is drawn. pyplot is not used, so there is no global figure, no window and
nothing to close.
"""

import contextlib
import os
import textwrap
from collections.abc import Iterator, Mapping, Sized
from typing import TYPE_CHECKING

import numpy as np

from kvae.core.errors import InputError
from kvae.core.files import replaced

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 200
INK, QUIET, FAINT = "#1A1A1A", "#5F5F5F", "#E4E4E4"

# Six colours of Okabe and Ito, then four found by search. Any two differ by more than 10 (CIEDE2000) for normal and
# for colour-blind viewers.
PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"),
    *("#56B4E9", "#221C85", "#A41A18", "#521E28", "#62686C"),
)
STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so every machine writes the same file
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.fontsize": 7.5,
    "text.color": INK,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    **{f"{axis}tick.{name}": value for axis in "xy" for name, value in {"color": QUIET, "labelsize": 7.5}.items()},
    **{f"{axis}tick.{level}.size": size for axis in "xy" for level, size in {"major": 2.5, "minor": 0}.items()},
}

MARGIN, _TITLE_LINE, _NOTE_LINE = 0.13, 0.19, 0.15  # inches


@contextlib.contextmanager
def png_figure(
    path: os.PathLike | str, width: float, height: float, title: str, note: str = "", reading: str = ""
) -> Iterator["Figure"]:
    """Yields an empty figure in kvae's style and writes it to `path` when the block ends without an error.

    The caption is stored in the file as PNG text, for web pages and screen readers: `Title`, and `Description`, which
    is the note followed by the reading.

    Args:
      path: the PNG file. It is replaced atomically: if drawing fails, the old file stays.
      width: width in inches.
      height: height of the drawing in inches, without the header.
      title: title of the figure, one sentence that states its message.
      note: sentences drawn in grey below the title: numbers, or the meaning of the marks.
      reading: sentences that explain how to read the figure; they are only stored in the file.

    Yields:
      A `matplotlib.figure.Figure`. Its subplots are laid out below the header; `add_axes` places axes by hand.
    """
    import matplotlib
    from matplotlib.figure import Figure

    titles, notes = _wrap_evenly(title, int(width * 10.5)), _wrap_evenly(note, int(width * 15))
    header = 2 * MARGIN + _TITLE_LINE * len(titles) + _NOTE_LINE * len(notes)
    width, total = round(width * DPI) / DPI, round((height + header) * DPI) / DPI
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, total), layout="constrained")
        figure.get_layout_engine().set(rect=(0, 0, 1, height / total), w_pad=0.08, h_pad=0.08, wspace=0.04)
        text_style = {"va": "top", "linespacing": 1.25, "parse_math": False}
        top = 1 - MARGIN / total
        figure.text(MARGIN / width, top, "\n".join(titles), size=10, weight="bold", **text_style)
        top -= (_TITLE_LINE * len(titles) + 0.03) / total
        figure.text(MARGIN / width, top, "\n".join(notes), size=7.5, color=QUIET, **text_style)
        yield figure
        _write(figure, path, {"Title": title, "Description": f"{note} {reading}".strip()})


def color_limits(values: np.ndarray, lowest: float | None = None) -> tuple[float, float]:
    """Returns the ends of a colour scale: the lowest and highest value, or a slightly wider range if they are equal.

    Args:
      values: finite, int or float [n]; without values, the scale has length 1.
      lowest: the lower end; None for the lowest value.
    """
    if values.size == 0:
        return (lowest or 0.0), (lowest or 0.0) + 1.0
    lowest = float(values.min()) if lowest is None else lowest
    highest = float(values.max())
    return lowest, highest if highest > lowest else lowest + (1e-6 * abs(lowest) or 1.0)


def _wrap_evenly(text: str, limit: int) -> list[str]:
    """Wraps text into as few lines as `limit` characters allow, of about the same length."""
    lines = len(textwrap.wrap(text, limit))
    while limit > 1 and len(textwrap.wrap(text, limit - 1)) == lines:
        limit -= 1
    return textwrap.wrap(text, limit)


def _write(figure, path, texts: Mapping[str, str]):
    with replaced(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None, **texts})


def add_axes(figure: "Figure", left: float, bottom: float, width: float, height: float) -> "Axes":
    """Adds axes at a position in inches from the lower left corner and turns automatic layout off."""
    figure.set_layout_engine("none")
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def require_series(name: str, series: Sized) -> None:
    """Raises InputError if `series` is empty: no run of the figure has been trained yet."""
    if not series:
        raise InputError(f"{name} is empty; it must have at least one series: train one of the figure's runs first")
