"""Runs in a notebook: `kvae.train` makes one, `kvae.load` opens one, `kvae.from_pretrained` one that is shared."""

import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from kvae import data
from kvae.core.errors import InputError
from kvae.data.images import read_images
from kvae.models.codebook_views import by_codebook
from kvae.models.model import Model
from kvae.runs import export, share
from kvae.runs.codes import between, near, validate_codes, validate_images
from kvae.training.workdir.journal import read_metrics


class Run:
    """A trained model with its variables; images are uint8 everywhere.

    Attributes:
      workdir: the run's folder.
      config: the whole resolved config.
      step: the step of the checkpoint.
      model: the Flax module.
      variables: what `model.apply` takes, as NumPy arrays.
      replica: which one, where several seeds were trained at once.
    """

    def __init__(self, workdir: str, config: dict, step: int, model: Model, variables: dict, replica: int = 0):
        self.workdir, self.config, self.step, self.model, self.variables = workdir, config, step, model, variables
        self.replica = replica

    @property
    def metrics(self) -> list[dict]:
        """The rows of metrics.jsonl."""
        return read_metrics(self.workdir)

    @property
    def codebooks(self) -> dict[str, np.ndarray]:
        """Codewords by codebook, laid on the grid: float32 grid_shape + [d], or [K, d] where there is no grid.

        A quantiser with q codebooks has q entries, `<name>_0` and so on.
        """
        self._expect("decode")
        found = {}
        for name, layer in self.model.bind(self.variables).quantizers.items():
            shape = layer.grid.shape if layer.grid is not None else (layer.codebook_size,)
            parts = by_codebook(name, layer.n_codebooks, np.asarray(layer.codewords()))
            found |= {part: codewords.reshape(*shape, -1) for part, codewords in parts.items()}
        return found

    @property
    def image_spec(self) -> data.ImageSpec:
        """Size and crop of the images of the run's data set; raises InputError where its config has no size."""
        return data.image_spec(self.config["dataset"])

    def read_images(self, source, *, size: int | None = None, crop: bool | None = None) -> np.ndarray:
        """Images as the run's data set has them, uint8 [n, size, size, 3], for `encode`.

        Args:
          source: a folder, whose images come in the order of their paths; a file; an image of Pillow's; or a sequence
            of files and images. All are held in memory: `python -m kvae.tokenize` goes through folders of any size.
          size, crop: instead of the data set's: the edge in pixels; whether the aspect ratio is kept and the middle.

        Raises:
          InputError: there is no image, or one that cannot be read; or the data set has no size, and none is given.
        """
        return read_images(source, data.image_spec(self.config["dataset"], size, crop))

    def encode(self, images) -> dict[str, np.ndarray]:
        """Codes of images uint8 [b, h, w, 3], by codebook: int32 [b, h', w'], [b, h', w', q] of q codebooks.

        Raises:
          InputError: images are anything else; it says what would do, such as `read_images`.
        """
        return self.apply("encode", validate_images(images))

    def decode(self, codes: Mapping[str, np.ndarray]) -> np.ndarray:
        """Images uint8 [b, h, w, 3] from codes, by codebook.

        Raises:
          InputError: a codebook is missing, codes are no integers of a fitting shape, or one is not on its grid.
        """
        self._expect("decode")
        return self.apply("decode", validate_codes(self.model, codes))

    def reconstruct(self, images) -> np.ndarray:
        """Images uint8 [b, h, w, 3], encoded and decoded."""
        return self.apply("reconstruct", validate_images(images))

    def codes_near(self, code: int, radius: float = 1.5, codebook: str | None = None) -> np.ndarray:
        """The codes at a distance on the grid below `radius` from one, int32 [n]: itself, then the nearest first.

        Args:
          code: of which the neighbours are asked.
          radius: in nodes of the grid; 1.5 gives the eight neighbours on a plane.
          codebook: its name, where the model has several.

        Raises:
          InputError: there is no such code or codebook, or it has no grid.
        """
        self._expect("decode")
        return near(self.model, code, radius, codebook)

    def interpolate(self, codes_a, codes_b, steps: int) -> list[dict[str, np.ndarray]]:
        """Codes on the way from some to others, along the grid: each position takes the shortest way on its own.

        Near codes of a map decode to similar patches: `[run.decode(codes) for codes in run.interpolate(a, b, 8)]`.

        Args:
          codes_a, codes_b: by codebook, as `encode` gives them, of the same shapes.
          steps: how many, both ends among them.

        Raises:
          InputError: codes do not fit the model or each other, or a codebook has no grid.
        """
        self._expect("decode")
        return between(self.model, codes_a, codes_b, steps)

    def winners(self, images) -> np.ndarray:
        """The winning neuron (URL-SOM) of images uint8 [b, h, w, 3]: int32 [b], counted row by row on the map."""
        return self.apply("winners", validate_images(images))

    def map(self, images) -> np.ndarray:
        """How strongly each neuron answers (URL-SOM) to images uint8 [b, h, w, 3]: float32 [b, *grid_shape], sum 1."""
        return self.apply("map", validate_images(images))

    def save_pretrained(self, folder: os.PathLike | str) -> None:
        """Writes the run for others: model.safetensors, config.json, and README.md with its metrics and figures.

        `kvae.from_pretrained(folder)` opens it, with weights that are equal bit for bit.

        Raises:
          InputError: the folder holds other files, or cannot be written.
        """
        share.write(self, folder, pathlib.Path(folder).name)

    def push_to_hub(self, name: str, **options) -> str:
        """Puts what `save_pretrained` writes into "user/name" on Hugging Face's hub; returns the commit's address.

        Needs `pip install -e '.[hub]'`, and a token, as `hf auth login` keeps it.

        Args:
          name: of the repository, made where there is none.
          **options: of `huggingface_hub.ModelHubMixin.push_to_hub`, such as private=True, branch and token.

        Raises:
          InputError: the hub cannot be reached, or refuses.
        """
        return _hub().push(self, name, **options)

    def export(self, folder: os.PathLike | str, batch: str | int = "b", size: int | None = None) -> None:
        """Writes encode and decode as `jax.export` artefacts, which run without kvae and Flax: see `kvae.runs.export`.

        Args:
          folder: made if it does not exist.
          batch: a name, for a batch of any size, or the one size.
          size: edge of the images in pixels; by default the data set's.

        Raises:
          InputError: the model does not encode and decode, or the folder holds other files or cannot be written.
        """
        self._expect("encode")
        self._expect("decode")
        export.write(self, folder, batch, self.image_spec.size if size is None else size)

    def apply(self, method: str, *arguments) -> Any:
        """A method of the model that it names among its `methods`, of arrays; NumPy arrays come back.

        Raises:
          InputError: the model cannot do that, or an argument does not fit.
        """
        self._expect(method)
        return jax.device_get(program_of(self.model, method)(self.variables, *arguments))

    def _expect(self, method):
        if method not in self.model.methods:
            able = f"it can {', '.join(self.model.methods)}" if self.model.methods else "it has no abilities"
            raise InputError(f"{self.workdir} is a run of {type(self.model).__name__}: no {method!r}; {able}")

    def __repr__(self):
        return f"Run({self.workdir!r}, step={self.step}, model={type(self.model).__name__})"


@functools.lru_cache
def program_of(model: Model, method: str):
    """A method of a model as a compiled function of variables and arguments."""
    return jax.jit(functools.partial(model.apply, method=method))


def _hub():
    try:
        from kvae.runs import hub
    except ImportError as error:
        raise InputError(f"the hub needs huggingface_hub ({error}): pip install -e '.[hub]'") from error
    return hub
