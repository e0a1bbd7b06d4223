"""Runs in a notebook: `kvae.train` makes one, `kvae.load` opens one, `kvae.from_pretrained` one that is shared."""

import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from kvae import export, share
from kvae.codes import between, checked_codes, checked_images, near
from kvae.data.forms import Form, form_of, read_images
from kvae.errors import InputError, check_local
from kvae.models.codebooks import split
from kvae.models.model import Model
from kvae.opening import read_run
from kvae.training.config import build_model
from kvae.training.journal import logged_to, read_metrics
from kvae.training.mirror import mirrored
from kvae.training.workdir import check_place


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
            shape = layer.layout.shape if layer.layout is not None else (layer.codebook_size,)
            parts = split(name, layer.n_codebooks, np.asarray(layer.codewords()))
            found |= {part: codewords.reshape(*shape, -1) for part, codewords in parts.items()}
        return found

    @property
    def form(self) -> Form:
        """Size and crop of the images of the run's data set; raises InputError where its config has no size."""
        return form_of(self.config["dataset"])

    def read_images(self, source, *, size: int | None = None, crop: bool | None = None) -> np.ndarray:
        """Images as the run's data set has them, uint8 [n, size, size, 3], for `encode`.

        Args:
          source: a folder, whose images come in the order of their paths; a file; an image of Pillow's; or a sequence
            of files and images. All are held in memory: `python -m kvae.tokenize` goes through folders of any size.
          size, crop: instead of the data set's: the edge in pixels; whether the aspect ratio is kept and the middle.

        Raises:
          InputError: there is no image, or one that cannot be read; or the data set has no size, and none is given.
        """
        return read_images(source, form_of(self.config["dataset"], size, crop))

    def encode(self, images) -> dict[str, np.ndarray]:
        """Codes of images uint8 [b, h, w, 3], by codebook: int32 [b, h', w'], [b, h', w', q] of q codebooks.

        Raises:
          InputError: images are anything else; it says what would do, such as `read_images`.
        """
        return self.apply("encode", checked_images(images))

    def decode(self, codes: Mapping[str, np.ndarray]) -> np.ndarray:
        """Images uint8 [b, h, w, 3] from codes, by codebook.

        Raises:
          InputError: a codebook is missing, codes are no integers of a fitting shape, or one is not on its grid.
        """
        self._expect("decode")
        return self.apply("decode", checked_codes(self.model, codes))

    def reconstruct(self, images) -> np.ndarray:
        """Images uint8 [b, h, w, 3], encoded and decoded."""
        return self.apply("reconstruct", checked_images(images))

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
        return self.apply("winners", checked_images(images))

    def map(self, images) -> np.ndarray:
        """How strongly each neuron answers (URL-SOM) to images uint8 [b, h, w, 3]: float32 [b, *grid_shape], sum 1."""
        return self.apply("map", checked_images(images))

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
        """Writes encode and decode as `jax.export` artefacts, which run without kvae and Flax: see `kvae.export`.

        Args:
          folder: made if it does not exist.
          batch: a name, for a batch of any size, or the one size.
          size: edge of the images in pixels; by default the data set's.

        Raises:
          InputError: the model does not encode and decode, or the folder holds other files or cannot be written.
        """
        self._expect("encode")
        self._expect("decode")
        export.write(self, folder, batch, self.form.size if size is None else size)

    def apply(self, method: str, *arguments) -> Any:
        """A method of the model that it names among its `abilities`, of arrays; NumPy arrays come back.

        Raises:
          InputError: the model cannot do that, or an argument does not fit.
        """
        self._expect(method)
        return jax.device_get(program_of(self.model, method)(self.variables, *arguments))

    def _expect(self, method):
        if method not in self.model.abilities:
            able = f"it can {', '.join(self.model.abilities)}" if self.model.abilities else "it has no abilities"
            raise InputError(f"{self.workdir} is a run of {type(self.model).__name__}: no {method!r}; {able}")

    def __repr__(self):
        return f"Run({self.workdir!r}, step={self.step}, model={type(self.model).__name__})"


@functools.lru_cache
def program_of(model: Model, method: str):
    """A method of a model as a compiled function of variables and arguments."""
    return jax.jit(functools.partial(model.apply, method=method))


def _hub():
    try:
        from kvae import hub
    except ImportError as error:
        raise InputError(f"the hub needs huggingface_hub ({error}): pip install -e '.[hub]'") from error
    return hub


def load(workdir: str, step: int | str | None = None, replica: int = 0) -> Run:
    """Opens a run, on any machine, whatever devices trained it.

    Args:
      workdir: the run's folder, on a disk or in a bucket.
      step: of the checkpoint; by default the newest that can be read; "best" is that of the lowest validation loss.
      replica: which one, where several were trained at once.

    Raises:
      InputError: there is no run, checkpoint or replica of that name.
    """
    config, step, state = read_run(workdir, step)
    if not 0 <= replica < config["replicas"]:
        raise InputError(f"replica is {replica}; {workdir} has {config['replicas']}, from 0")
    variables = {"params": state["params"], **state["collections"]}
    # Runs of version 0.1 with a single replica have no replica axis.
    if np.ndim(state["step"]):
        variables = jax.tree.map(lambda leaf: leaf[replica], variables)
    return Run(str(workdir), config, step, build_model(config), variables, replica)


def from_pretrained(name: os.PathLike | str, **options) -> Run:
    """Opens a run that was shared with `Run.save_pretrained` or `Run.push_to_hub`.

    Args:
      name: a folder, or "user/name" of Hugging Face's hub, which needs `pip install -e '.[hub]'`.
      **options: of `huggingface_hub.snapshot_download`, such as revision, token and cache_dir.

    Raises:
      InputError: there is no such folder or repository, or its weights are damaged or of another model.
    """
    check_local("the shared run", name)
    folder = pathlib.Path(name).expanduser()
    if not folder.is_dir():
        folder = _hub().fetch(str(name), **options)
    config, step, replica, variables = share.read(folder)
    model = build_model(config)
    share.check_variables(model, variables, str(folder / share.WEIGHTS))
    return Run(str(folder), config, step, model, variables, replica)


def train(config: Mapping | ConfigDict, workdir: str) -> Run:
    """Trains the run of a folder as `python -m kvae.main` does, or goes on training it, and opens it.

    Args:
      config: such as `kvae.read_config("configs/photos_vqvae.py")` gives; what is left out takes its default.
      workdir: the run's folder. Interrupted, the run is saved, and the same call goes on.

    Raises:
      InputError: something that you can mend: a field, the data, the folder.
    """
    # Imported here: opening a run needs none of it.
    from kvae.training import loop

    config = config.to_dict() if isinstance(config, ConfigDict) else config
    check_place(workdir, config)
    with mirrored(workdir) as mirror, logged_to(mirror.folder):
        loop.train(config, workdir, mirror=mirror)
    return load(workdir)
