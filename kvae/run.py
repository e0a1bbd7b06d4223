"""Runs in a notebook: `kvae.train(config, workdir)` makes one, `kvae.load(workdir)` opens one, also while it trains."""

import contextlib
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from kvae.errors import InputError, check_local, check_names
from kvae.models.model import Model
from kvae.training.checkpoint import Checkpoints
from kvae.training.config import build_model
from kvae.training.journal import logged_to, read_metrics
from kvae.training.workdir import check_place, config_of_checkpoints, config_of_run, upgraded

TRIES = 10
"""How often a run is read that takes away, as it trains, what is being read."""


class Run:
    """A trained model with its variables; images are uint8 everywhere.

    Attributes:
      workdir: the run's folder.
      config: the whole resolved config.
      step: the step of the checkpoint.
      model: the Flax module.
      variables: what `model.apply` takes, as NumPy arrays.
      metrics: the rows of metrics.jsonl.
    """

    def __init__(self, workdir: str, config: dict, step: int, model: Model, variables: dict):
        self.workdir, self.config, self.step, self.model, self.variables = workdir, config, step, model, variables

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
            codewords = np.asarray(layer.codewords())
            parts = {name: codewords}
            if layer.n_codebooks > 1:
                parts = {f"{name}_{i}": part for i, part in enumerate(codewords)}
            found |= {part: words.reshape(*shape, -1) for part, words in parts.items()}
        return found

    def encode(self, images) -> dict[str, np.ndarray]:
        """Codes of images uint8 [b, h, w, 3], by codebook: int32 [b, h', w'], [b, h', w', q] of q codebooks."""
        return self.apply("encode", _images(images))

    def decode(self, codes: Mapping[str, np.ndarray]) -> np.ndarray:
        """Images uint8 [b, h, w, 3] from codes, by codebook.

        Raises:
          InputError: a codebook is missing, codes are no integers of a fitting shape, or one is not on its grid.
        """
        self._expect("decode")
        return self.apply("decode", _checked_codes(self.model, codes))

    def reconstruct(self, images) -> np.ndarray:
        """Images uint8 [b, h, w, 3], encoded and decoded."""
        return self.apply("reconstruct", _images(images))

    def winners(self, images) -> np.ndarray:
        """The winning neuron (URL-SOM) of images uint8 [b, h, w, 3]: int32 [b], counted row by row on the map."""
        return self.apply("winners", _images(images))

    def map(self, images) -> np.ndarray:
        """How strongly each neuron answers (URL-SOM) to images uint8 [b, h, w, 3]: float32 [b, *grid_shape], sum 1."""
        return self.apply("map", _images(images))

    def apply(self, method: str, *arguments) -> Any:
        """A method of the model that it names among its `abilities`, of arrays; NumPy arrays come back.

        Raises:
          InputError: the model cannot do that, or an argument does not fit.
        """
        self._expect(method)
        return jax.device_get(_jitted(self.model, method)(self.variables, *arguments))

    def _expect(self, method):
        if method not in self.model.abilities:
            able = ", ".join(self.model.abilities) or "nothing by itself"
            raise InputError(f"{self.workdir} is a run of {type(self.model).__name__}: no {method!r}; it can {able}")

    def __repr__(self):
        return f"Run({self.workdir!r}, step={self.step}, model={type(self.model).__name__})"


def _images(images) -> np.ndarray:
    try:
        found = np.asarray(images)
    except ValueError as error:
        raise InputError(f"images are not of one shape ({error}); they must be uint8[b, h, w, 3]") from error
    if found.dtype != np.uint8 or found.ndim != 4 or found.shape[-1] != 3:
        raise InputError(f"images are {found.dtype}{list(found.shape)}; they must be uint8[b, h, w, 3]")
    return found


def _checked_codes(model: Model, codes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Codes by codebook, int32, that fit the model and each other."""
    if not isinstance(codes, Mapping):
        found = type(codes).__name__
        raise InputError(f"codes are a {found}; they must be a dict of arrays by codebook, as `encode` gives them")
    check_names("codes", codes, model.quantizers)
    found, sizes = {}, {}
    for name, layer in model.quantizers.items():
        if name not in codes:
            raise InputError(f"codes lack the codebook {name!r}")
        array = np.asarray(codes[name])
        wanted = "int [b, h, w]" if layer.n_codebooks == 1 else f"int [b, h, w, {layer.n_codebooks}]"
        fits = array.ndim == 3 if layer.n_codebooks == 1 else array.ndim == 4 and array.shape[3] == layer.n_codebooks
        if array.dtype.kind not in "iu" or not fits:
            raise InputError(f"codes of {name!r} are {array.dtype}{list(array.shape)}; they must be {wanted}")
        if array.size and (array.min() < 0 or array.max() >= layer.codebook_size):
            run = f"{array.min()} to {array.max()}"
            raise InputError(f"codes of {name!r} run from {run}; they must be in 0 to {layer.codebook_size - 1}")
        found[name] = array.astype(np.int32)
        stride = model.code_strides[name]
        sizes[name] = (array.shape[0], array.shape[1] * stride, array.shape[2] * stride)
    if len(set(sizes.values())) > 1:
        shapes = ", ".join(f"{name!r} {list(array.shape)}" for name, array in found.items())
        raise InputError(f"codes are of different images: {shapes}")
    return found


@functools.lru_cache
def _jitted(model, method):
    return jax.jit(functools.partial(model.apply, method=method))


def load(workdir: str, step: int | str | None = None, replica: int = 0) -> Run:
    """Opens a run, on any machine, whatever devices trained it.

    Args:
      workdir: the run's folder.
      step: of the checkpoint; by default the newest that can be read; "best" is that of the lowest validation loss.
      replica: which one, where several were trained at once.

    Raises:
      InputError: there is no run, checkpoint or replica of that name.
    """
    check_local("the run", workdir)
    for again in reversed(range(TRIES)):
        with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
            try:
                config, step, state = _read(workdir, checkpoints, step)
                break
            except InputError:
                # A run that is training may take away what is being read.
                if not again or checkpoints.are_still_there():
                    raise
    if not 0 <= replica < config["replicas"]:
        raise InputError(f"replica is {replica}; {workdir} has {config['replicas']}, from 0")
    variables = {"params": state["params"], **state["collections"]}
    # Runs of version 0.1 with a single replica have no replica axis.
    if np.ndim(state["step"]):
        variables = jax.tree.map(lambda leaf: leaf[replica], variables)
    return Run(str(workdir), config, step, build_model(config), variables)


def _read(workdir: str, checkpoints: Checkpoints, step: int | str | None) -> tuple[dict, int, dict]:
    """The config, the step and the state of a checkpoint."""
    steps = checkpoints.steps()
    if not steps:
        config_of_run(workdir)  # says what is wrong with it, if anything
        raise InputError(f"{workdir} has no checkpoint yet")
    config = config_of_checkpoints(workdir, checkpoints)
    if step == "best" and (step := checkpoints.best()) is None:
        raise InputError(f"{workdir} has no checkpoint with a validation loss yet; leave step out")
    if step is not None and step not in steps:
        raise InputError(f"{workdir} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}")
    wanted = reversed(steps) if step is None else [step]
    return upgraded(config), *checkpoints.first_readable(wanted, checkpoints.variables)


def train(config: Mapping | ConfigDict, workdir: str) -> Run:
    """Trains the run of a folder as `python -m kvae.main` does, or goes on training it, and opens it.

    Example:
      config = kvae.read_config("configs/photos_vqvae.py")
      config.steps = 200
      run = kvae.train(config, "runs/short")

    Args:
      config: such as `kvae.read_config` gives; what is left out takes its default.
      workdir: the run's folder. Interrupted, the run is saved, and the same call goes on.

    Raises:
      InputError: something that you can mend: a field, the data, the folder.
    """
    # Imported here: opening a run needs none of it.
    from kvae.training import loop

    config = config.to_dict() if isinstance(config, ConfigDict) else config
    check_place(workdir, config)
    with logged_to(workdir):
        loop.train(config, workdir)
    return load(workdir)
