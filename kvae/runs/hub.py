"""Hugging Face's hub, through `huggingface_hub`: what a run is pushed with, and where a shared one comes from."""

import contextlib
import pathlib
from collections.abc import Iterator

from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from kvae.core.errors import InputError
from kvae.core.fields import short_repr
from kvae.runs import share

FILES = (share.WEIGHTS, "config.json", share.ROWS, "figures/*.png", "README.md")
"""What is fetched: whatever else a repository holds stays there."""

HTTP_ERRORS = HfHubHTTPError.__bases__
"""Of the library by which the client speaks HTTP, which has changed from version to version; and OSError."""


class Pushed(ModelHubMixin):
    """A run as the hub's mixin sees it.

    Args:
      run: a `kvae.runs.run.Run`.
      name: of the repository.
    """

    def __init__(self, run, name: str):
        self.run, self.name = run, name

    def _save_pretrained(self, save_directory: pathlib.Path) -> None:
        share.write(self.run, save_directory, self.name)


def push(run, name: str, **options) -> str:
    """Pushes a run to the repository "user/name"; returns the address of the commit.

    Args:
      run: a `kvae.runs.run.Run`.
      name: of the repository, which is made if there is none.
      **options: of `ModelHubMixin.push_to_hub`.

    Raises:
      InputError: the hub cannot be reached or refuses.
    """
    with _wrap_hub_errors(f"{name} is not pushed: the hub refuses or does not answer; `hf auth login` keeps a token"):
        return str(Pushed(run, name).push_to_hub(name, **options))


def fetch(name: str, **options) -> pathlib.Path:
    """The folder where a repository "user/name" lies, after it was fetched if need be.

    Args:
      name: of the repository.
      **options: of `huggingface_hub.snapshot_download`.

    Raises:
      InputError: there is none, or the hub cannot be reached.
    """
    with _wrap_hub_errors(f"{name} is no folder here, and the hub does not have it or does not answer"):
        return pathlib.Path(snapshot_download(name, allow_patterns=list(FILES), **options))


@contextlib.contextmanager
def _wrap_hub_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (*HTTP_ERRORS, HFValidationError, LocalEntryNotFoundError) as error:
        raise InputError(f"{what} ({short_repr(error, 300, str)})") from error
