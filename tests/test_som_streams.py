"""Data that `kvae.SOM` reads block by block: frames, tables, Parquet data sets, and arrays in chunks."""

import itertools
import pathlib
import re
import types

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest

import kvae
from kvae.core.errors import InputError
from kvae.som import learning, sources
from vectors import DATA

NAMES = list("abcde")
FRAME = pd.DataFrame(DATA, columns=NAMES)
MAP = dict(grid_shape=(3, 4), n_epochs=2, batch_size=90, random_state=0)


class Chunks:
    """An array as dask, zarr and h5py offer it: read by slices of rows, and never as a whole."""

    def __init__(self, array, chunks):
        self.array, self.shape, self.chunks, self.reads = array, array.shape, chunks, []

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        self.reads.append((rows.start, rows.stop))
        return self.array[rows]

    def __array__(self, *args, **kwargs):
        raise MemoryError


class Partitions:
    """A data frame as dask offers it: parts that are computed one by one."""

    def __init__(self, frame):
        self.partitions = [types.SimpleNamespace(compute=lambda part=part: part) for part in (frame[:120], frame[120:])]
        self.npartitions = 2

    def compute(self):
        raise MemoryError


def dataset(folder):
    table = pa.Table.from_pandas(FRAME)
    for number, start in enumerate((0, 120)):
        pa.parquet.write_table(table.slice(start, 120), folder / f"{number}.parquet", row_group_size=50)
    pa.parquet.write_table(table.slice(0, 0), folder / "2.parquet")
    return pa.dataset.dataset(folder)


FORMS = {
    "pandas": lambda folder: FRAME,
    "Arrow table": lambda folder: pa.Table.from_pandas(FRAME),
    "Arrow data set": dataset,
    "Arrow scanner": lambda folder: dataset(folder).scanner(columns=NAMES, batch_size=64),
    "Parquet file": lambda folder: dataset(folder) and pa.parquet.ParquetFile(folder / "0.parquet"),
    "zarr": lambda folder: Chunks(DATA, (40, 5)),
    "dask": lambda folder: Chunks(DATA, ((64, 64, 64, 8), (5,))),
    "h5py": lambda folder: Chunks(DATA, None),
    "dask frame": lambda folder: Partitions(FRAME),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_map_of_the_array(form, tmp_path):
    X = FORMS[form](tmp_path)
    rows = DATA[:120] if form == "Parquet file" else DATA
    expected, som = kvae.SOM(**MAP).fit(rows), kvae.SOM(**MAP).fit(X)
    np.testing.assert_allclose(som.cluster_centers_, expected.cluster_centers_, atol=1e-5)
    np.testing.assert_array_equal(som.labels_, expected.labels_)
    np.testing.assert_array_equal(som.predict(X), expected.labels_)
    assert som.score(X) == pytest.approx(expected.score(rows), rel=1e-5)
    if not isinstance(X, Chunks):
        assert list(som.feature_names_in_) == NAMES


def test_sample_does_not_depend_on_form(monkeypatch):
    monkeypatch.setattr(learning, "SAMPLE_ROWS", 30)
    expected = kvae.SOM(**MAP | {"n_epochs": 0}).fit(DATA)
    for X in (FRAME, pa.Table.from_pandas(FRAME), Chunks(DATA, (40, 5))):
        som = kvae.SOM(**MAP | {"n_epochs": 0}).fit(X)
        np.testing.assert_allclose(som.cluster_centers_, expected.cluster_centers_, atol=1e-5)


def test_chunks_are_read_once_in_every_pass():
    X = Chunks(DATA, (40, 5))
    kvae.SOM(**MAP, init=DATA[:12]).fit(X, sample_weight=np.ones(200))
    passes = [(0, 80), (80, 160), (160, 200)]  # about 90 rows, in whole chunks
    assert X.reads == [(0, 1), *passes * 4]  # the sample, two epochs, labels


def test_missing_values_of_tables_are_known_to_be_missing(tmp_path):
    holes = FRAME.mask(np.random.default_rng(1).random(FRAME.shape) < 0.1)
    options = MAP | {"missing": "ignore", "n_epochs": 1}
    table = pa.Table.from_pandas(holes)  # with nulls
    assert table.column("a").null_count > 0
    pa.parquet.write_table(table, tmp_path / "0.parquet")
    expected = kvae.SOM(**options).fit(holes.to_numpy())
    for X in (holes, table, pa.dataset.dataset(tmp_path)):
        np.testing.assert_array_equal(kvae.SOM(**options).fit(X).labels_, expected.labels_)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (FRAME.assign(a="x"), "could not convert string to float"),
        (FRAME[:0], r"Found array with 0 sample\(s\)"),
        (
            pa.dataset.dataset(pa.Table.from_pandas(FRAME[:0])),
            "X is an iterable of 0 batches; it must have at least one",
        ),
        (itertools.chain([DATA], [DATA]), "X is an iterator and can be read only once"),
    ],
)
def test_forms_without_usable_rows_are_refused(X, message):
    with pytest.raises(ValueError, match=message):
        kvae.SOM(**MAP).fit(X)


def test_columns_are_compared_by_name():
    som = kvae.SOM(**MAP | {"n_epochs": 0}).fit(FRAME)
    with pytest.raises(ValueError, match="feature names should match"):
        som.predict(pa.Table.from_pandas(FRAME[NAMES[::-1]]))
    with pytest.raises(InputError, match="sample_weight cannot be combined with an iterable"):
        som.fit(pa.dataset.dataset(pa.Table.from_pandas(FRAME)), sample_weight=np.ones(200))


@pytest.mark.parametrize(("mode", "order"), [("r", "C"), ("r+", "C"), ("c", "C"), ("r", "F")])
def test_mapped_pages_are_given_back(tmp_path, mode, order, monkeypatch):
    monkeypatch.setattr(sources, "MAPPED_BYTES", 2**16)
    monkeypatch.setattr(sources, "HUGE_PAGE_BYTES", 2**12)
    path, shape = tmp_path / "rows", (100_000, 4)
    np.random.default_rng(0).random(shape, np.float32).tofile(path)
    mapped = np.memmap(path, np.float32, mode, shape=shape, order=order)
    if mode == "c":
        mapped[5] = 7  # only in memory
    rows = np.array(mapped)
    copy = sources.open_slices(mapped[::3]).take(10, 30_000)
    np.testing.assert_array_equal(copy, rows[::3][10:30_000])
    numbers = np.arange(0, 90_000, 7)
    np.testing.assert_array_equal(sources.open_slices(mapped).pick(numbers), rows[numbers])
    np.testing.assert_array_equal(mapped, rows)
    sources.open_slices(mapped).take(0, 100_000)
    (entry,) = re.findall(rf"{path}\n(?:.*\n)*?Rss: +(\d+) kB", pathlib.Path("/proc/self/smaps").read_text())
    assert (int(entry) < 300) == (mode != "c")  # of 1,600
