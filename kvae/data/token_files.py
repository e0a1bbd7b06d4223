"""Files of codes: how a shard of rows becomes a file, and a file rows again.

The same rows give the same bytes, so that work which was interrupted ends as if it had not been.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from kvae.core.errors import wrap_read_errors

MADE_ANEW = "remove it and run kvae.tokenize again"
FOLDER_MADE_ANEW = "remove its folder and run kvae.tokenize again"
"""What to do with a damaged file of codes, and with one that says what the others hold."""

Rows = dict[str, Any]
"""Columns by name: `index` int64 [n], `name` a list of strings, `label` int32 [n], and codes [n, ...] by codebook."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """What rows have beside their `index`.

    Attributes:
      shapes: of the codes of an image, by codebook.
      dtypes: of these codes, by codebook: "int16" or "int32".
      names: whether rows have a `name`.
      labels: whether rows have a `label`.
      label_names: the classes, if they have names.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    names: bool
    labels: bool
    label_names: tuple[str, ...] = ()


class Format(NamedTuple):
    """A file format.

    Attributes:
      file_name: of a shard, from its split, its number and how many there are.
      write: writes rows to a path.
      read: the rows of a file; an InputError if it is damaged.
      count: how many rows a file has; an InputError if it is damaged.
      finish: writes what other programs want to find beside the files of a folder: by split, their names and rows.
    """

    file_name: Callable[[str, int, int], str]
    write: Callable[[pathlib.Path, Rows, Columns], None]
    read: Callable[[pathlib.Path, Columns], Rows]
    count: Callable[[pathlib.Path], int]
    finish: Callable[[pathlib.Path, Mapping[str, Mapping[str, int]], Columns], None]


def little_endian(dtype: str) -> np.dtype:
    """The type of codes as they stand in a record."""
    return np.dtype(dtype).newbyteorder("<")


def record_of(row: Mapping[str, Any], columns: Columns) -> bytes:
    """A row as a tf.Example, its codes as bytes: what tfds reads as a `Tensor` of that encoding."""
    from tensorflow_datasets.proto import tf_example_pb2
    from tensorflow_datasets.proto import tf_feature_pb2 as proto

    feature = {}
    for name, value in row.items():
        if name == "name":
            feature[name] = proto.Feature(bytes_list=proto.BytesList(value=[value.encode()]))
        elif name in columns.shapes:
            codes = np.asarray(value, little_endian(columns.dtypes[name]))
            feature[name] = proto.Feature(bytes_list=proto.BytesList(value=[codes.tobytes()]))
        else:
            feature[name] = proto.Feature(int64_list=proto.Int64List(value=[int(value)]))
    # A map of protocol buffers has no order of its own: without this its bytes differ from process to process.
    return tf_example_pb2.Example(features=proto.Features(feature=feature)).SerializeToString(deterministic=True)


def row_of(record: bytes, columns: Columns) -> dict[str, Any]:
    """The row that `record_of` made a record of."""
    from tensorflow_datasets.proto import tf_example_pb2

    feature = tf_example_pb2.Example.FromString(record).features.feature
    row = {"index": feature["index"].int64_list.value[0]}
    if columns.names:
        row["name"] = feature["name"].bytes_list.value[0].decode()
    if columns.labels:
        row["label"] = feature["label"].int64_list.value[0]
    for name, shape in columns.shapes.items():
        codes = np.frombuffer(feature[name].bytes_list.value[0], little_endian(columns.dtypes[name]))
        row[name] = codes.reshape(shape)
    return row


def _write_array_record(path, rows, columns):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(os.fspath(path), "group_size:1")  # so that a record is read without its neighbours
    try:
        for values in zip(*rows.values(), strict=True):
            writer.write(record_of(dict(zip(rows, values, strict=True)), columns))
    finally:
        writer.close()


@contextlib.contextmanager
def _array_record_reader(path) -> Iterator[Any]:
    from array_record.python.array_record_module import ArrayRecordReader

    with wrap_read_errors(path, MADE_ANEW):
        reader = ArrayRecordReader(os.fspath(path))
        try:
            yield reader
        finally:
            reader.close()


def _read_array_record(path, columns):
    with _array_record_reader(path) as reader:
        parsed = [row_of(record, columns) for record in reader.read_all()] if reader.num_records() else []
    types = {"index": np.int64, "label": np.int32, **columns.dtypes}
    names = ["index", *["name"] * columns.names, *["label"] * columns.labels]
    rows: Rows = {name: [row[name] for row in parsed] for name in [*names, *columns.shapes]}
    return rows | {
        name: np.array(rows[name], kind).reshape(-1, *columns.shapes.get(name, ()))
        for name, kind in types.items()
        if name in rows
    }


def _count_array_record(path):
    with _array_record_reader(path) as reader:
        return reader.num_records()


def _finish_array_record(folder, files, columns):
    """Metadata of tfds, so that `tfds.builder_from_directory` opens the folder."""
    import tensorflow_datasets as tfds

    features = {"index": tfds.features.Scalar(np.int64)}
    if columns.names:
        features["name"] = tfds.features.Text()
    if columns.labels:
        classes = columns.label_names
        features["label"] = tfds.features.ClassLabel(names=classes) if classes else tfds.features.Scalar(np.int64)
    encoding = tfds.features.Encoding.BYTES
    for name, shape in columns.shapes.items():
        features[name] = tfds.features.Tensor(shape=shape, dtype=np.dtype(columns.dtypes[name]), encoding=encoding)
    splits = []
    for split, counts in files.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name="tokens", split=split, filetype_suffix="array_record"
        )
        size = sum((folder / name).stat().st_size for name in counts)
        splits.append(tfds.core.SplitInfo(split, list(counts.values()), size, filename_template=template))
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=tfds.features.FeaturesDict(features),
        split_infos=splits,
        version="1.0.0",
        description="Codes of images, written by kvae; see tokens.json.",
        check_data=False,  # it would need TensorFlow
    )


def _write_parquet(path, rows, columns):
    import pyarrow
    from pyarrow import parquet

    arrays = {}
    for name, column in rows.items():
        array = pyarrow.array(column, pyarrow.string()) if name == "name" else pyarrow.array(np.ravel(column))
        for size in reversed(columns.shapes.get(name, ())):
            array = pyarrow.FixedSizeListArray.from_arrays(array, size)
        arrays[name] = array
    parquet.write_table(pyarrow.table(arrays), path, compression="zstd", write_page_checksum=True)


def _read_parquet(path, columns):
    from pyarrow import parquet

    with wrap_read_errors(path, MADE_ANEW):
        table = parquet.read_table(path, partitioning=None, page_checksum_verification=True)
        rows: Rows = {}
        for name in table.column_names:
            array, shape = table[name].combine_chunks(), columns.shapes.get(name, ())
            for _ in shape:
                array = array.flatten()
            rows[name] = array.to_pylist() if name == "name" else array.to_numpy().reshape(-1, *shape)
    return rows


def _count_parquet(path):
    from pyarrow import parquet

    with wrap_read_errors(path, MADE_ANEW):
        return parquet.read_metadata(path).num_rows


FORMATS: dict[str, Format] = {
    # Named as tfds and Hugging Face's `datasets` name the files of a split.
    "array_record": Format(
        lambda split, number, count: f"tokens-{split}.array_record-{number:05}-of-{count:05}",
        _write_array_record,
        _read_array_record,
        _count_array_record,
        _finish_array_record,
    ),
    "parquet": Format(
        lambda split, number, count: f"{split}-{number:05}-of-{count:05}.parquet",
        _write_parquet,
        _read_parquet,
        _count_parquet,
        lambda folder, files, columns: None,
    ),
}
"""By name, the formats of token files."""
