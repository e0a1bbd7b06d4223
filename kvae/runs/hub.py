"""Uploads runs to the Hugging Face Hub and downloads them, with `huggingface_hub`."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kvae.core.errors import InputError, require_extra, short_repr
from kvae.runs import share
from kvae.training.workdir.metrics_file import ROWS

if TYPE_CHECKING:
    from kvae.runs.run import Run

with require_extra("hub"):
    from huggingface_hub import ModelHubMixin, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

FILES = (share.WEIGHTS, "config.json", ROWS, "figures/*.png", "README.md")
"""Patterns of the files to download; anything else in a repository is ignored."""

# OSError, and the error class of the HTTP library that the installed version of huggingface_hub uses.
HTTP_ERRORS = HfHubHTTPError.__bases__


class UploadedRun(ModelHubMixin):
    """Adapts a run to `ModelHubMixin`, which uploads it.

    Args:
      run: A `kvae.runs.Run`.
      name: The repository, "user/name".
      **sharing: `images` and `license` for `share.save_shared`.
    """

    def __init__(self, run: "Run", name: str, **sharing: Any):
        self.run, self.name, self.sharing = run, name, sharing

    def _save_pretrained(self, save_directory: pathlib.Path) -> None:
        share.save_shared(self.run, save_directory, self.name, **self.sharing)


def push(run: "Run", name: str, *, images: bool = False, license: str | None = None, **options: Any) -> str:
    """Uploads a run.

    Args:
      run: A `kvae.runs.Run`.
      name: The repository, "user/name". It is created if it does not exist.
      images: See `kvae.runs.Run.save_pretrained`.
      license: See `kvae.runs.Run.save_pretrained`.
      **options: Passed to `ModelHubMixin.push_to_hub`.

    Returns:
      The URL of the commit.

    Raises:
      InputError: The Hub cannot be reached or rejects the upload.
    """
    if not isinstance(name, str):
        raise InputError(f"name is {short_repr(name)}; it must be the name of a repository, 'user/name'")
    with _wrap_hub_errors(
        f"{name} was not uploaded: the Hub rejected it or did not respond; log in with `hf auth login`"
    ):
        return str(UploadedRun(run, name, images=images, license=license).push_to_hub(name, **options))


def fetch(name: str, **options: Any) -> pathlib.Path:
    """Downloads a repository, unless it is cached, and returns its local folder.

    Args:
      name: The repository, "user/name".
      **options: Passed to `huggingface_hub.snapshot_download`.

    Raises:
      InputError: The repository does not exist, or the Hub cannot be reached.
    """
    with _wrap_hub_errors(f"{name} is not a local folder, and the Hub does not have it or did not respond"):
        return pathlib.Path(snapshot_download(name, allow_patterns=list(FILES), **options))


@contextlib.contextmanager
def _wrap_hub_errors(message: str) -> Iterator[None]:
    """Turns errors of the Hub into an InputError with a message and the error's text."""
    try:
        yield
    except (*HTTP_ERRORS, HFValidationError, LocalEntryNotFoundError) as error:
        raise InputError(f"{message} ({short_repr(error, 300, str)})") from error
