"""Reads and writes shards of codes, as ArrayRecord or Parquet files.

Equal rows give identical bytes, so `kvae.tokenize` produces the same files if it is interrupted and resumed.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kvae.core.code_range import first_outside
from kvae.core.errors import InputError, require_extra, wrap_read_errors
from kvae.core.files import check_file

RUN_AGAIN = "delete it and run kvae.tokenize again"
"""Remedy for a corrupted shard."""

RUN_ALL_AGAIN = "delete its folder and run kvae.tokenize again"
"""Remedy for a corrupted _tokens.json."""

TokenRows = dict[str, Any]
"""Columns by name: `index` int64 [n], `name` a list of strings, `label` int32 [n], and codes [n, ...] by codebook."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of a token file, in addition to `index`.

    Attributes:
      shapes: shape of the codes of one image, by codebook.
      dtypes: dtype of the codes, "int16" or "int32", by codebook.
      sizes: number of codes, by codebook.
      names: True if rows have a `name`.
      labels: True if rows have a `label`.
      label_names: names of the classes; empty if they have none.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    sizes: Mapping[str, int]
    names: bool
    labels: bool
    label_names: tuple[str, ...] = ()


class Format(NamedTuple):
    """A format of token files.

    Attributes:
      file_name: maps the split, the number of a shard and the number of shards to a file name.
      write: writes rows to a path.
      read: returns the rows of a file; raises InputError if it is corrupted.
      peek: returns the number of rows in a file, and the index of the first (None if it has no rows); raises
        InputError if it is corrupted.
      finish: writes the metadata that other programs expect in a folder, from the number of rows by split and file.
    """

    file_name: Callable[[str, int, int], str]
    write: Callable[[pathlib.Path, TokenRows, Columns], None]
    read: Callable[[pathlib.Path, Columns], TokenRows]
    peek: Callable[[pathlib.Path, Columns], tuple[int, int | None]]
    finish: Callable[[pathlib.Path, Mapping[str, Mapping[str, int]], Columns], None]


def little_endian(dtype: str) -> np.dtype:
    """Returns a dtype in the byte order of records."""
    return np.dtype(dtype).newbyteorder("<")


def encode_row(row: Mapping[str, Any], columns: Columns) -> bytes:
    """Encodes a row as a tf.Example. Codes are bytes, which tfds's `Tensor` with `Encoding.BYTES` reads."""
    with require_extra("train"):
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
    # Without `deterministic`, the order of the features differs between processes.
    return tf_example_pb2.Example(features=proto.Features(feature=feature)).SerializeToString(deterministic=True)


def decode_row(record: bytes, columns: Columns) -> dict[str, Any]:
    """Decodes a record that `encode_row` has encoded."""
    with require_extra("train"):
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


def check_codes(name: str, codes: np.ndarray, size: int, index: Sequence[int] | np.ndarray) -> None:
    """Raises InputError if a code is not in 0..`size` - 1; the message gives the first such position.

    Args:
      name: name of the codes, for the message.
      codes: integers [n, ...].
      size: number of codes of the codebook.
      index: the `index` of each row, [n].
    """
    outside = first_outside(codes, size)
    if outside is not None:
        row, *position = outside
        raise InputError(
            f"{name} has the code {codes[outside]} at {position} of row {index[row]}; codes must be from 0 to "
            f"{size - 1}; {RUN_AGAIN}"
        )


def _write_array_record(path: pathlib.Path, rows: TokenRows, columns: Columns) -> None:
    with require_extra("train"):
        from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(os.fspath(path), "group_size:1")  # so that random access reads one record, not a group
    try:
        for values in zip(*rows.values(), strict=True):
            writer.write(encode_row(dict(zip(rows, values, strict=True)), columns))
    finally:
        writer.close()


@contextlib.contextmanager
def _array_record_reader(path: pathlib.Path) -> Iterator[Any]:
    with require_extra("train"):
        from array_record.python.array_record_module import ArrayRecordReader

    with wrap_read_errors(path, RUN_AGAIN):
        check_file(path)
        reader = ArrayRecordReader(os.fspath(path))
        try:
            yield reader
        finally:
            reader.close()


def _read_array_record(path: pathlib.Path, columns: Columns) -> TokenRows:
    with _array_record_reader(path) as reader:
        parsed = [decode_row(record, columns) for record in reader.read_all()] if reader.num_records() else []
    types = {"index": np.int64, "label": np.int32, **columns.dtypes}
    names = ["index", *["name"] * columns.names, *["label"] * columns.labels]
    rows: TokenRows = {name: [row[name] for row in parsed] for name in [*names, *columns.shapes]}
    return rows | {
        name: np.array(rows[name], kind).reshape(-1, *columns.shapes.get(name, ()))
        for name, kind in types.items()
        if name in rows
    }


def _peek_array_record(path: pathlib.Path, columns: Columns) -> tuple[int, int | None]:
    with _array_record_reader(path) as reader:
        count = reader.num_records()
        return count, decode_row(reader.read([0])[0], columns)["index"] if count else None


def _finish_array_record(folder: pathlib.Path, files: Mapping[str, Mapping[str, int]], columns: Columns) -> None:
    """Writes tfds's metadata, so that `tfds.builder_from_directory` opens the folder."""
    with require_extra("train"):
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
        description="Codes of images, written by kvae; see _tokens.json.",
        check_data=False,  # the check needs TensorFlow
    )


def _write_parquet(path: pathlib.Path, rows: TokenRows, columns: Columns) -> None:
    with require_extra("share"):
        import pyarrow
        from pyarrow import parquet

    arrays = {}
    for name, column in rows.items():
        array = pyarrow.array(column, pyarrow.string()) if name == "name" else pyarrow.array(np.ravel(column))
        for size in reversed(columns.shapes.get(name, ())):
            array = pyarrow.FixedSizeListArray.from_arrays(array, size)
        arrays[name] = array
    parquet.write_table(pyarrow.table(arrays), path, compression="zstd", write_page_checksum=True)


def _read_parquet(path: pathlib.Path, columns: Columns) -> TokenRows:
    with require_extra("share"):
        from pyarrow import parquet

    kinds = {"index": "int64", "name": "string", "label": "int32", **columns.dtypes}
    names = ["index", *["name"] * columns.names, *["label"] * columns.labels, *columns.shapes]
    with wrap_read_errors(path, RUN_AGAIN):
        check_file(path)
        table = parquet.read_table(path, partitioning=None, page_checksum_verification=True)
        rows: TokenRows = {}
        for name in names:
            if name not in table.column_names:
                raise ValueError(f"column {name} is missing; the columns are {', '.join(table.column_names)}")
            array, shape = table[name].combine_chunks(), columns.shapes.get(name, ())
            for _ in shape:
                array = array.flatten()
            if str(array.type) != kinds[name] or array.null_count:
                raise ValueError(
                    f"column {name} is {array.type} with {array.null_count} nulls; it must be {kinds[name]}"
                )
            rows[name] = array.to_pylist() if name == "name" else array.to_numpy().reshape(table.num_rows, *shape)
    return rows


def _peek_parquet(path: pathlib.Path, columns: Columns) -> tuple[int, int | None]:
    with require_extra("share"):
        from pyarrow import parquet

    with wrap_read_errors(path, RUN_AGAIN):
        check_file(path)
        index = parquet.read_table(path, partitioning=None, columns=["index"])["index"]
        return len(index), int(index[0].as_py()) if len(index) else None


FORMATS: dict[str, Format] = {
    # File names follow the conventions of tfds and of Hugging Face's `datasets`.
    "array_record": Format(
        lambda split, number, count: f"tokens-{split}.array_record-{number:05}-of-{count:05}",
        _write_array_record,
        _read_array_record,
        _peek_array_record,
        _finish_array_record,
    ),
    "parquet": Format(
        lambda split, number, count: f"{split}-{number:05}-of-{count:05}.parquet",
        _write_parquet,
        _read_parquet,
        _peek_parquet,
        lambda folder, files, columns: None,
    ),
}
"""The formats of token files by name."""
