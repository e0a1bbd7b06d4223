"""Images as tiles on a grid: scaling them, joining them into one picture and drawing it without resampling."""

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from kvae.core.image_arrays import check_images
from kvae.plots.canvas import DPI, add_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


LABEL_HEIGHT, DIGIT_WIDTH = 0.125, 0.067
"""Size of a tick label in inches: its height with some space, and the width of a digit at 7.5 points."""


def validate_images(name: str, images: ArrayLike, leading: int) -> np.ndarray:
    """Returns images as an array, after checking dtype and shape.

    A model's `decode` may return floats or another number of channels by mistake.

    Args:
      name: name of the array in the message.
      images: anything that NumPy can convert to an array.
      leading: number of axes before height, width and channels.

    Returns:
      uint8 [*leading axes, h, w, 3].

    Raises:
      InputError: the images have another dtype or shape, or are empty.
    """
    images = np.asarray(images)
    check_images(name, images, leading)
    return images


def hex_to_rgb(color: str) -> np.ndarray:
    """Returns the red, green and blue values, 0 to 255, of a colour such as "#D55E00"."""
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])


def scale_images(images: np.ndarray, side: int) -> np.ndarray:
    """Scales images so that their longer side is at most `side` pixels.

    Images are enlarged by an integer factor, so that pixels stay square, and reduced by averaging areas.

    Args:
      images: uint8 [n, h, w, 3].
      side: length in pixels.

    Returns:
      uint8 [n, h', w', 3].
    """
    from PIL import Image

    h, w = images.shape[1:3]
    if factor := side // max(h, w):
        return images.repeat(factor, axis=1).repeat(factor, axis=2)
    size = max(1, w * side // max(h, w)), max(1, h * side // max(h, w))
    return np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)) for image in images])


def join_tiles(tiles: np.ndarray, numbers: np.ndarray, gap: int = 2) -> np.ndarray:
    """Joins tiles into one picture.

    Args:
      tiles: uint8 [n, h, w, 3].
      numbers: int [rows, columns], the tile in each cell; -1 leaves a cell white.
      gap: pixels between tiles.

    Returns:
      uint8 [rows * (h + gap), columns * (w + gap), 3].
    """
    n, h, w, _ = tiles.shape
    padded = np.full((n + 1, h + gap, w + gap, 3), 255, np.uint8)
    padded[:n, :h, :w] = tiles
    rows, columns = numbers.shape
    return padded[numbers].swapaxes(1, 2).reshape(rows * (h + gap), columns * (w + gap), 3)


def join_hexagons(
    tiles: np.ndarray, numbers: np.ndarray, gap: int = 2
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Joins tiles into one picture of hexagons, with every second row half a tile to the right.

    Args:
      tiles: uint8 [n, s, s, 3].
      numbers: int [rows, columns], the tile in each cell.
      gap: pixels between tiles.

    Returns:
      The picture, uint8 [h, w, 3], and its extent (left, right, bottom, top) in rows and columns.
    """
    rows, columns = numbers.shape
    side = tiles.shape[1]
    width, height = side + gap, round(2 * (side + gap) / math.sqrt(3))
    pitch = round(0.75 * height)
    across = np.abs(np.arange(width) - (width - 1) / 2) / (side / 2)
    up = np.abs(np.arange(height) - (height - 1) / 2) / (side / math.sqrt(3))
    inside = (across <= 1) & (up[:, None] <= 1 - across / 2)
    # A square tile is slightly less high than its hexagon. Repeat it above and below.
    tiles = tiles[:, (np.arange(height) - (height - side) // 2) % side][:, :, np.arange(width) % side]
    picture = np.full(((rows - 1) * pitch + height, columns * width + width // 2, 3), 255, np.uint8)
    for row, column in np.ndindex(rows, columns):
        top, left = row * pitch, column * width + (row % 2) * (width // 2)
        cell = picture[top : top + height, left : left + width]
        cell[inside] = tiles[numbers[row, column]][inside]
    return picture, (-0.5, columns, (len(picture) - height / 2) / pitch, -height / 2 / pitch)


def add_picture(
    figure: "Figure",
    picture: np.ndarray,
    left: float,
    bottom: float,
    cells: tuple[int, int],
    extent: tuple[float, float, float, float] | None = None,
) -> "Axes":
    """Adds axes that show a picture of joined tiles pixel by pixel.

    Args:
      figure: figure to which the axes are added.
      picture: uint8 [h, w, 3], from `join_tiles` or `join_hexagons`.
      left, bottom: position of the lower left corner, in inches.
      cells: numbers of rows and columns of tiles. The axes count tiles from the upper left.
      extent: extent of the picture in rows and columns, if cells are not square.

    Returns:
      The axes, without spines and ticks.
    """
    rows, columns = cells
    axes = add_axes(figure, left, bottom, picture.shape[1] / DPI, picture.shape[0] / DPI)
    extent = extent or (-0.5, columns - 0.5, rows - 0.5, -0.5)
    axes.imshow(picture, extent=extent, aspect="auto", interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.grid(False)
    axes.tick_params(length=0, pad=3)
    return axes


class GridLayout(NamedTuple):
    """A grid with any number of axes, laid out in rows and columns."""

    codes: np.ndarray  # int [rows, columns]; -1 where a cell is empty
    row_labels: list[str]  # "" between two slices
    column_labels: list[str]
    axis_labels: tuple[str, str]
    note: str  # a sentence on how the grid was laid out; "" for a plane


def lay_out_grid(grid_shape: tuple[int, ...], origin: tuple[int, int] = (0, 0)) -> GridLayout:
    """Lays a grid out in rows and columns: wraps a line, and cuts a grid with more than two axes into slices.

    Args:
      grid_shape: the shape of the grid.
      origin: for a part of a grid with two axes, the row and column of its first node.
    """
    size = math.prod(grid_shape)
    numbers = np.arange(size)
    if len(grid_shape) == 1:
        columns = size if size <= 16 else 2 ** round(math.log2(2 * size) / 2)
        starts = range(0, size, columns)
        codes = np.full(len(starts) * columns, -1)
        codes[:size] = numbers
        is_wrapped = len(starts) > 1
        note = f"A line of {size} codes; each row continues the one above." if is_wrapped else ""
        axis_labels = ("first code of the row", "position in the row") if is_wrapped else ("", "code")
        row_labels = list(map(str, starts)) if is_wrapped else [""]
        return GridLayout(codes.reshape(-1, columns), row_labels, list(map(str, range(columns))), axis_labels, note)
    *outer, rows, columns = grid_shape
    slices = numbers.reshape(-1, rows, columns)
    across = min(len(slices), max(1, round(math.sqrt(2 * len(slices) * rows / columns))))
    down = -(-len(slices) // across)
    codes = np.full((down, rows + 1, across, columns + 1), -1)
    for i, piece in enumerate(slices):
        codes[i // across, :rows, i % across, :columns] = piece
    codes = codes.reshape(down * (rows + 1), across * (columns + 1))[:-1, :-1]
    row_labels = [*map(str, range(origin[0], origin[0] + rows)), ""] * down
    column_labels = [*map(str, range(origin[1], origin[1] + columns)), ""] * across
    shape = " \N{MULTIPLICATION SIGN} ".join(map(str, grid_shape))
    note = f"The {shape} grid is shown as {len(slices)} slices, in reading order." if outer else ""
    return GridLayout(codes, row_labels[:-1], column_labels[:-1], ("grid row", "grid column"), note)


def sparse_labels(names: list[str], space: float) -> dict[int, str]:
    """Returns labels by position, thinned out so that they do not overlap: at most 16 for each slice.

    Example:
      >>> sparse_labels(["0", "1", "2", "", "0", "1", "2"], space=1.5)
      {0: '0', 2: '2', 4: '0', 6: '2'}

    Args:
      names: label of each cell; "" between two slices.
      space: minimum distance between two labels, in cells.
    """
    slice_length = (*names, "").index("")
    step = 2 ** math.ceil(math.log2(max(space, slice_length / 16, 1)))
    labels, last = {}, -math.inf
    for i, name in enumerate(names):
        position = i % (slice_length + 1)
        next_slice = i - position + slice_length + 1
        is_near_next = position and i + space > next_slice < len(names)
        if name and position % step == 0 and not is_near_next and i - last >= space:
            labels[i], last = name, i
    return labels


def label_cells(axes: "Axes", layout: GridLayout) -> None:
    """Labels the rows and columns of a grid layout, without overlap, on axes whose units are its cells."""
    box, size = axes.get_position(), axes.figure.get_size_inches()
    cells = np.divide((box.height * size[1], box.width * size[0]), layout.codes.shape)  # inches
    longest = max(map(len, layout.column_labels))
    spaces = LABEL_HEIGHT / cells[0], (longest + 1) * DIGIT_WIDTH / cells[1]
    labels = (layout.row_labels, layout.column_labels)
    for axis, names, space, label in zip((axes.yaxis, axes.xaxis), labels, spaces, layout.axis_labels, strict=True):
        ticks = sparse_labels(names, space)
        axis.set_ticks(list(ticks), list(ticks.values()))
        axis.set_label_text(label)
