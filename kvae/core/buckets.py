"""Support for runs in Google Cloud Storage buckets: addresses, paths and one-line error messages."""

import contextlib
import functools
import importlib
import logging
import os
import pathlib
import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from kvae.core.errors import InputError, check_local, check_utf8, first_line

if TYPE_CHECKING:
    import google.cloud.storage

SCHEME = "gs://"
ADDRESS = re.compile(r"gs://[^/]+/+[^/]")

CONNECT_SECONDS = 30
"""Time limit for a bucket to answer when a program starts."""

CLIENTS = ("aiohttp", "gcsfs", "google", "requests", "urllib3")
"""Packages that raise the exceptions of a network or a bucket."""

REFUSALS = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "PERMISSION_DENIED", "UNAUTHENTICATED")
"""Prefixes of tensorstore's ValueErrors when a bucket does not answer or denies access.

JAX errors have the same prefixes when another process has died or a GPU is full, but they are RuntimeErrors.
"""


def is_bucket(path: object) -> bool:
    """True if a path is the address of a bucket, or of a folder or object in one.

    Example:
      >>> is_bucket("gs://my-bucket/runs/photos"), is_bucket("runs/photos")
      (True, False)
    """
    return str(path).startswith(SCHEME)


def check_address(name: str, path: object) -> None:
    """Raises InputError unless a path is a local path or a folder in a bucket.

    Args:
      name: What the path is called in the message.
      path: A path or an address.
    """
    if isinstance(path, pathlib.PurePath) and re.match(r"gs:/[^/]", str(path)):
        # pathlib merges slashes, and would create a local folder called "gs:".
        address = str(path).replace("gs:/", SCHEME, 1)
        raise InputError(f"{name} is {path}, from which pathlib removed a slash; pass the string {address!r} instead")
    check_utf8(name, path)
    if not is_bucket(path):
        check_local(name, path)
    elif not ADDRESS.match(str(path)):
        raise InputError(f"{name} is {path}; it must name a folder in a bucket, such as gs://my-bucket/runs/photos")


def as_path(path: object) -> pathlib.Path:
    """Returns a `pathlib.Path`, or for an address in a bucket an `etils.epath` path, which has the same methods."""
    return _epath().Path(str(path)) if is_bucket(path) else pathlib.Path(path)


def folders_with(names: Collection[str], folder: pathlib.Path) -> set[pathlib.Path]:
    """Returns the folders, at or below `folder`, that directly contain a file or folder with one of the names."""
    if not is_bucket(folder):
        return {path.parent for name in names for path in folder.rglob(name)}
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(str(folder))
    below = (path.removeprefix(root) for path in filesystem.find(root))
    parts = [pathlib.PurePosixPath("/", path.lstrip("/")).parts[1:] for path in below]
    return {folder.joinpath(*names_of[:i]) for names_of in parts for i, name in enumerate(names_of) if name in names}


def rename_folder(folder: pathlib.Path, name: pathlib.Path) -> None:
    """Renames a folder. Buckets have no folders, so there each object is copied on the server and then deleted."""
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
    """Returns `etils.epath`, set up to use gcsfs without cached listings, because other programs also write there."""
    # By default epath uses TensorFlow if it is installed. TensorFlow is slow to import and raises its own exceptions.
    os.environ["EPATH_USE_TF"] = "false"
    epath, gpath = importlib.import_module("etils.epath"), importlib.import_module("etils.epath.gpath")
    gpath._is_tf_installed.cache_clear()  # epath may have been used before
    importlib.import_module("fsspec.config").conf.setdefault("gcs", {})["use_listings_cache"] = False
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs tracebacks of requests that it retries
    return epath


def open_bucket(path: object) -> "google.cloud.storage.Bucket":
    """Connects to the bucket of an address.

    Args:
      path: An address in the bucket.

    Returns:
      The bucket, after it has answered a request. Close its client after use.

    Raises:
      InputError: A package, the credentials or the bucket is missing, or the bucket does not answer or denies access.
    """
    name = str(path).removeprefix(SCHEME).partition("/")[0]
    try:
        from google.api_core.exceptions import Forbidden, NotFound
        from google.auth.exceptions import DefaultCredentialsError
        from google.cloud import storage

        importlib.import_module("gcsfs")
    except ImportError as error:
        raise InputError(f"{path} is in a bucket, which needs gcsfs ({error}): pip install -e '.[gcs]'") from error
    retry = storage.retry.DEFAULT_RETRY.with_timeout(CONNECT_SECONDS)
    try:
        return storage.Client().get_bucket(name, timeout=CONNECT_SECONDS, retry=retry)
    except DefaultCredentialsError as error:
        raise InputError(
            f"{path} needs credentials, but none were found: run gcloud auth application-default login, or set "
            "GOOGLE_APPLICATION_CREDENTIALS to a credentials file"
        ) from error
    except Forbidden as error:
        raise InputError(
            f"{path} cannot be read with these credentials: they need one role for objects and one for the bucket, "
            f"such as roles/storage.objectUser and roles/storage.legacyBucketReader ({first_line(error)})"
        ) from error
    except NotFound as error:
        raise InputError(
            f"{path}: bucket {name!r} does not exist; create it with gcloud storage buckets create gs://{name}"
        ) from error
    except Exception as error:  # each underlying library raises its own exceptions
        raise InputError(f"{path} cannot be reached: {bucket_error(error) or first_line(error)}") from error


def check_reachable(path: object) -> None:
    """Raises InputError if a path is in a bucket that cannot be reached; see `open_bucket`."""
    if is_bucket(path):
        open_bucket(path).client.close()


def bucket_error(error: BaseException | None) -> str | None:
    """Returns the message of the first exception in a chain that came from a bucket or the network; None if none did.

    Callers use it so that a short network failure is not reported as a corrupted file.
    """
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
def wrap_bucket_errors(path: object) -> Iterator[None]:
    """Turns the exceptions of a bucket that does not answer or denies access into a one-line InputError.

    All other exceptions, and all exceptions for local paths, pass through.

    Args:
      path: An address in the bucket, for the message.

    Raises:
      InputError: The bucket does not answer or denies access.
    """
    try:
        yield
    except Exception as error:
        reason = bucket_error(error) if is_bucket(path) else None
        if reason is None:
            raise
        raise InputError(
            f"{path} cannot be reached: {reason}; no files are lost; run the same command again once it is reachable"
        ) from error
