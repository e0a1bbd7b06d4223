"""What a prepared data set consists of: a count and a digest for each of its files, kept beside them.

Such a folder is copied from machine to machine, and tfds itself takes what it finds.
"""

import hashlib
import json
import os
import pathlib

from kvae.core import files
from kvae.core.errors import InputError

NAME = "manifest.json"

READ_WHOLE_BYTES = 2**26
"""A data set up to this size is compared with its digests whenever it is opened; of a larger one, only its smaller
files: of the rest the size, and each record is checked by its own checksum as it is read."""


def write_manifest(folder: os.PathLike | str) -> None:
    """Writes down what has been prepared in a folder: of each file the bytes, the digest, and the number of records."""
    folder = pathlib.Path(folder)
    entries = {path.name: _entry(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != NAME}
    files.write_text(folder / NAME, json.dumps(entries, indent=1) + "\n")


def _entry(path: pathlib.Path) -> dict[str, int | str]:
    from array_record.python.array_record_module import ArrayRecordReader

    entry = {"bytes": path.stat().st_size, "blake2b": digest(path)}
    if ".array_record" in path.name:
        reader = ArrayRecordReader(str(path))
        entry["records"] = reader.num_records()
        reader.close()
    return entry


def digest(path: os.PathLike | str) -> str:
    """BLAKE2b of 16 bytes of a file."""
    with files.opened(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def check_manifest(folder: os.PathLike | str, read_whole_bytes: int = READ_WHOLE_BYTES) -> int:
    """Compares a folder with what was written down of it, where there is something; returns how many files it did.

    Raises:
      InputError: a file is missing, or is not what was prepared.
    """
    folder = pathlib.Path(folder)
    remedy = f"remove {folder}, and it is prepared anew"
    for path in folder.iterdir():
        if not path.is_file():  # a pipe would be waited for
            raise InputError(f"{path} is damaged: it is no file; {remedy}")
    if not (folder / NAME).exists():  # prepared by another program
        return 0
    try:
        entries = json.loads(files.read_text(folder / NAME))
        expected = {name: (int(entry["bytes"]), str(entry["blake2b"])) for name, entry in entries.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{folder / NAME} is damaged ({type(error).__name__}: {error}); {remedy}") from error
    whole = sum(size for size, _ in expected.values()) <= read_whole_bytes
    for name, (size, saved) in expected.items():
        path = folder / os.path.basename(name)
        try:
            found = os.stat(path).st_size
            same = found == size and (not (whole or size <= 2**20) or digest(path) == saved)
        except (OSError, ValueError) as error:  # no such file, or what is no name
            raise InputError(f"{path} cannot be read ({error}); {remedy}") from error
        if not same:
            what = f"has {found:,} bytes instead of {size:,}" if found != size else "is not what was prepared"
            raise InputError(f"{path} is damaged: it {what}; {remedy}")
    return len(expected)
