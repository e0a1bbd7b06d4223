"""Runs in a bucket of Google Cloud Storage: their addresses and paths, and what goes wrong there, in words."""

import contextlib
import functools
import importlib
import logging
import os
import pathlib
import re
from collections.abc import Collection, Iterator

from kvae.core.errors import InputError, check_local, first_line

SCHEME = "gs://"
ADDRESS = re.compile(r"gs://[^/]+/+[^/]")

LONGEST_WAIT_SECONDS = 30
"""How long a bucket may take to say, as a program starts, that it is there."""

CLIENTS = ("aiohttp", "gcsfs", "google", "requests", "urllib3")
"""Whose exceptions come from the network, or from the bucket at the end of it."""

REFUSALS = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "PERMISSION_DENIED", "UNAUTHENTICATED")
"""What tensorstore's messages begin with where a bucket does not answer, or does not let one in.

They are ValueErrors. JAX begins alike, of a peer that has gone or of a full GPU: its errors are RuntimeErrors.
"""


def is_bucket(path) -> bool:
    """Whether a path is the address of a bucket, or of something in it."""
    return str(path).startswith(SCHEME)


def check_address(name: str, path) -> None:
    """Raises InputError for an address that is neither a path of this machine nor of a folder in a bucket."""
    if isinstance(path, pathlib.PurePath) and re.match(r"gs:/[^/]", str(path)):
        address = str(path).replace("gs:/", SCHEME, 1)
        raise InputError(f"{name} is {path}, which pathlib made of an address; give it as a string, {address!r}")
    if not is_bucket(path):
        check_local(name, path)
    elif not ADDRESS.match(str(path)):
        raise InputError(f"{name} is {path}; it must name a folder in a bucket, such as gs://my-bucket/runs/photos")


def as_path(path) -> pathlib.Path:
    """The path of a file or folder: one of epath's where it lies in a bucket."""
    return _epath().Path(str(path)) if is_bucket(path) else pathlib.Path(path)


def folders_with(names: Collection[str], folder: pathlib.Path) -> set[pathlib.Path]:
    """All folders, from one downwards, in which there is something that has one of these names."""
    if not is_bucket(folder):
        return {path.parent for name in names for path in folder.rglob(name)}
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(str(folder))
    below = (path.removeprefix(root) for path in filesystem.find(root))
    parts = [pathlib.PurePosixPath("/", path.lstrip("/")).parts[1:] for path in below]
    return {folder.joinpath(*of_path[:at]) for of_path in parts for at, part in enumerate(of_path) if part in names}


def rename_folder(folder: pathlib.Path, name: pathlib.Path) -> None:
    """Renames a folder. A bucket has no folders: there the objects are copied, by the bucket itself, then removed."""
    if not is_bucket(folder):
        folder.rename(name)
        return
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(str(folder))
    files = filesystem.find(root)
    filesystem.copy(files, [str(name / file.removeprefix(f"{root}/")) for file in files])
    folder.rmtree()


@functools.cache
def _epath():
    """epath, told to reach buckets through gcsfs, and gcsfs to remember no listing: others write there too."""
    # Where TensorFlow is installed epath would take that, which is slow to import and has errors of its own kind.
    os.environ["EPATH_USE_TF"] = "false"
    epath, gpath = importlib.import_module("etils.epath"), importlib.import_module("etils.epath.gpath")
    gpath._is_tf_installed.cache_clear()  # somebody may have used epath before
    importlib.import_module("fsspec.config").conf.setdefault("gcs", {})["use_listings_cache"] = False
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs tracebacks of what it then tries again
    return epath


def bucket_of(path):
    """The bucket of an address, as google-cloud-storage has it; it has answered.

    Raises:
      InputError: a library is missing, or credentials, or the bucket; or it does not answer, or lets nobody in.
    """
    name = str(path).removeprefix(SCHEME).partition("/")[0]
    try:
        from google.api_core.exceptions import Forbidden, NotFound
        from google.auth.exceptions import DefaultCredentialsError
        from google.cloud import storage

        importlib.import_module("gcsfs")
    except ImportError as error:
        raise InputError(f"{path} is in a bucket, which needs gcsfs ({error}): pip install -e '.[gcs]'") from error
    patience = storage.retry.DEFAULT_RETRY.with_timeout(LONGEST_WAIT_SECONDS)
    try:
        return storage.Client().get_bucket(name, timeout=LONGEST_WAIT_SECONDS, retry=patience)
    except DefaultCredentialsError as error:
        raise InputError(
            f"{path} needs credentials, and there are none: gcloud auth application-default login makes them, or "
            "GOOGLE_APPLICATION_CREDENTIALS names a file of them"
        ) from error
    except Forbidden as error:
        raise InputError(
            f"{path} may not be read with these credentials: they need a role for objects and one for the bucket, such "
            f"as roles/storage.objectUser and roles/storage.legacyBucketReader ({first_line(error)})"
        ) from error
    except NotFound as error:
        raise InputError(f"{path}: there is no bucket {name!r}; gcloud storage buckets create makes one") from error
    except Exception as error:  # each library on the way has its own
        raise InputError(f"{path} cannot be reached: {reason_of(error) or first_line(error)}") from error


def check_reachable(path) -> None:
    """Raises InputError where a path lies in a bucket that cannot be reached; see `bucket_of`."""
    if is_bucket(path):
        bucket_of(path).client.close()


def reason_of(error: BaseException | None) -> str | None:
    """What a bucket, or the network before it, said, wherever it stands in a chain of exceptions; None for nothing."""
    while error is not None and not isinstance(error, InputError):
        text = first_line(error)
        by_client = type(error).__module__.partition(".")[0] in CLIENTS
        by_client |= isinstance(error, OSError) and text.startswith("Forbidden")  # gcsfs
        by_tensorstore = isinstance(error, ValueError) and text.startswith(REFUSALS)
        if by_client or by_tensorstore or isinstance(error, ConnectionError | TimeoutError):
            return text[:300]
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def wrap_bucket_errors(path) -> Iterator[None]:
    """Turns what is raised where a bucket does not answer, or refuses, into one line; does nothing for other paths."""
    try:
        yield
    except Exception as error:
        reason = reason_of(error) if is_bucket(path) else None
        if reason is None:
            raise
        raise InputError(
            f"{path} cannot be reached: {reason}; what is there is kept, and the same command goes on once it can be"
        ) from error
