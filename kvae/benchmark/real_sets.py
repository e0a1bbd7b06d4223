"""Real data sets for maps, read from files in packages of PyPI and Debian."""

import importlib.util
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.preprocessing import scale

from kvae.core.errors import InputError, require_extra, wrap_read_errors

DEBIAN = "apt-get install r-cran-{0}, or unpack that package with dpkg -x and name the folder with --data"
R_FOLDER = pathlib.Path("/usr/lib/R/site-library")
"""The folder into which Debian installs R packages."""


class Rows(NamedTuple):
    """Rows of a data set.

    Attributes:
      vectors: float32 [n, d]; NaN marks a missing value.
      labels: int [n]; None if the rows have no labels.
    """

    vectors: np.ndarray
    labels: np.ndarray | None = None


class RealSet(NamedTuple):
    """A data set in a file.

    Attributes:
      file: name of the file.
      remedy: how to get it.
      read: maps the path of the file to the rows.
    """

    file: str
    remedy: str
    read: Callable[[pathlib.Path], Rows]


def read_set(name: str, folders: Sequence[str] = ()) -> Rows:
    """Reads a data set by its name in `REAL_SETS`.

    Args:
      name: the name.
      folders: folders to search, at any depth, before the places where packages are installed.

    Raises:
      InputError: the file is missing or corrupted; the message says how to get it.
    """
    entry = REAL_SETS[name]
    installed = importlib.util.find_spec("fcsparser")
    places = [pathlib.Path(folder) for folder in folders] + [R_FOLDER]
    places += [pathlib.Path(place) for place in (installed.submodule_search_locations if installed else [])]
    path = next((path for place in places for path in sorted(place.rglob(entry.file))), None)
    if path is None:
        raise InputError(f"{name} is left out, because {entry.file} is missing: {entry.remedy}")
    with wrap_read_errors(path, entry.remedy):
        return entry.read(path)


def read_cytometry(path: pathlib.Path) -> Rows:
    """Reads a flow-cytometry tube: cells by channels.

    The fluorescence channels are compensated by the file's spillover matrix. All channels but Time are transformed by
    arcsinh(x / 150) and scaled to unit variance.
    """
    content = path.read_bytes()
    text_start, text_end, data_start, data_end = (int(content[i : i + 8]) for i in (10, 18, 26, 34))
    text = content[text_start : text_end + 1].decode("latin-1")
    parts = text[1:].rstrip(text[0]).split(text[0])
    fields = {key.upper(): value.strip() for key, value in zip(parts[::2], parts[1::2], strict=False)}
    order = ">" if fields["$BYTEORD"].startswith("4") else "<"
    count = int(fields["$PAR"])
    cells = np.frombuffer(content[data_start : data_end + 1], f"{order}f4").reshape(-1, count).astype(np.float64)
    if len(cells) != int(fields["$TOT"]):
        raise ValueError(f"it has {len(cells):,} cells instead of {int(fields['$TOT']):,}")
    channels = [fields[f"$P{i}N"] for i in range(1, count + 1)]
    size, *spill = fields["SPILL"].split(",")
    names, matrix = spill[: int(size)], np.array(spill[int(size) :], np.float64).reshape(int(size), -1)
    spilled = [channels.index(name) for name in names]
    cells[:, spilled] = cells[:, spilled] @ np.linalg.inv(matrix)
    chosen = [i for i, name in enumerate(channels) if name != "Time"]
    return Rows(scale(np.arcsinh(cells[:, chosen] / 150)).astype(np.float32))


def _read_r(path: pathlib.Path) -> Any:
    """Returns the only object in an R file."""
    with require_extra("bench"):
        import rdata

    (value,) = rdata.read_rda(path).values()
    return value


def read_pixels(path: pathlib.Path) -> Rows:
    """Reads the pixels of a cartoon, 800 x 600, with their true segments: red, green and blue."""
    table = np.asarray(_read_r(path))
    return Rows(table[:, 1:].astype(np.float32) / 255, table[:, 0].astype(int))


def _read_table(path: pathlib.Path, label: int) -> Rows:
    """Reads a data frame whose column `label` holds the classes; the others are scaled to unit variance."""
    table = _read_r(path)
    _, labels = np.unique(table.iloc[:, label].astype("U").to_numpy().astype("U"), return_inverse=True)
    vectors = table.drop(columns=table.columns[label]).to_numpy(np.float64)
    return Rows(scale(vectors).astype(np.float32), labels)


def read_letters(path: pathlib.Path) -> Rows:
    """Reads 16 attributes of printed letters."""
    return _read_table(path, 0)


def read_satellite(path: pathlib.Path) -> Rows:
    """Reads the 36 values of 3 x 3 pixels of satellite images, and the soil of the central pixel."""
    return _read_table(path, -1)


def read_yeast(path: pathlib.Path) -> Rows:
    """Reads the expression of genes of yeast in four time series of its cell cycle, with missing values."""
    series = _read_r(path)
    tables = [np.asarray(series[name], np.float64) for name in ("alpha", "cdc15", "cdc28", "elu")]
    return Rows(np.concatenate(tables, axis=1).astype(np.float32))


REAL_SETS = {
    "cytometry": RealSet("facs_diva_test.fcs", "pip install --no-deps fcsparser", read_cytometry),
    "peppaPic": RealSet("peppaPic.rda", DEBIAN.format("kohonen"), read_pixels),
    "letters": RealSet("LetterRecognition.rda", DEBIAN.format("mlbench"), read_letters),
    "satellite": RealSet("Satellite.rda", DEBIAN.format("mlbench"), read_satellite),
    "yeast": RealSet("yeast.rda", DEBIAN.format("kohonen"), read_yeast),
}
"""Real data sets by name. R files need `pip install rdata`."""
