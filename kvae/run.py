"""Opens a finished, or still running, run in a notebook: `kvae.load(workdir)`."""

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import numpy as np

from kvae import models
from kvae.errors import InputError
from kvae.models.autoencoder import Autoencoder
from kvae.models.urlsom import URLSOM
from kvae.training.checkpoint import Checkpoints
from kvae.training.config import read_config
from kvae.training.journal import read_metrics


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

    def __init__(self, workdir: str, config: dict, step: int, model: nn.Module, variables: dict):
        self.workdir, self.config, self.step, self.model, self.variables = workdir, config, step, model, variables

    @property
    def metrics(self) -> list[dict]:
        """The rows of metrics.jsonl."""
        return read_metrics(self.workdir)

    @property
    def codebooks(self) -> dict[str, np.ndarray]:
        """Codewords by codebook, laid on the grid: float32 grid_shape + [d]."""
        self._expect(Autoencoder, "codebooks")
        layers = self.model.bind(self.variables).quantizers
        return {name: np.asarray(layer.codewords()).reshape(*layer.grid_shape, -1) for name, layer in layers.items()}

    def encode(self, images) -> dict[str, np.ndarray]:
        """Codes of images uint8 [b, h, w, 3], by codebook: int32 [b, h', w']."""
        self._expect(Autoencoder, "encode")
        return self._apply("encode", np.asarray(images))

    def decode(self, codes: Mapping[str, np.ndarray]) -> np.ndarray:
        """Images uint8 [b, h, w, 3] from codes, by codebook.

        Raises:
          InputError: a codebook is missing, or a code is not on its grid.
        """
        self._expect(Autoencoder, "decode")
        codes = {name: np.asarray(array) for name, array in codes.items()}
        models.check_names("codes", codes, self.model.quantizers)
        for name, layer in self.model.quantizers.items():
            if name not in codes:
                raise InputError(f"codes lack the codebook {name!r}")
            size = int(np.prod(layer.grid_shape))
            if codes[name].size and (codes[name].min() < 0 or codes[name].max() >= size):
                found = f"{codes[name].min()} to {codes[name].max()}"
                raise InputError(f"codes of {name!r} run from {found}; they must be in 0 to {size - 1}")
        return self._apply("decode", codes)

    def reconstruct(self, images) -> np.ndarray:
        """Images uint8 [b, h, w, 3], encoded and decoded."""
        self._expect(Autoencoder, "reconstruct")
        return self._apply("reconstruct", np.asarray(images))

    def winners(self, images) -> np.ndarray:
        """The winning neuron (URL-SOM) of images uint8 [b, h, w, 3]: int32 [b], counted row by row on the map."""
        self._expect(URLSOM, "winners")
        return self._apply("winners", np.asarray(images))

    def map(self, images) -> np.ndarray:
        """How strongly each neuron answers (URL-SOM) to images uint8 [b, h, w, 3]: float32 [b, *grid_shape], sum 1."""
        self._expect(URLSOM, "map")
        return self._apply("map", np.asarray(images))

    def _expect(self, kind, what):
        if not isinstance(self.model, kind):
            raise InputError(f"{self.workdir} is a run of {type(self.model).__name__}, which has no {what!r}")

    def _apply(self, method, argument):
        return jax.device_get(_jitted(self.model, method)(self.variables, argument))

    def __repr__(self):
        return f"Run({self.workdir!r}, step={self.step}, model={type(self.model).__name__})"


@functools.lru_cache
def _jitted(model, method):
    return jax.jit(functools.partial(model.apply, method=method))


def load(workdir: str, step: int | None = None, replica: int = 0) -> Run:
    """Opens a run, on any machine, whatever devices trained it.

    Args:
      workdir: the run's folder.
      step: of the checkpoint; by default the newest that can be read.
      replica: which one, where several were trained at once.

    Raises:
      InputError: there is no run, checkpoint or replica of that name.
    """
    config = read_config(workdir)
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        steps = checkpoints.steps()
        if not steps:
            raise InputError(f"{workdir} has no checkpoint yet")
        if step is not None and step not in steps:
            raise InputError(f"{workdir} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}")
        wanted = reversed(steps) if step is None else [step]
        step, state = checkpoints.first_readable(wanted, checkpoints.restore_as_saved)
    finally:
        checkpoints.close()
    variables = {"params": state["params"], **state["collections"]}
    if config["replicas"] > 1:
        if not 0 <= replica < config["replicas"]:
            raise InputError(f"replica is {replica}; {workdir} has {config['replicas']}, from 0")
        variables = jax.tree.map(lambda leaf: leaf[replica], variables)
    elif replica:
        raise InputError(f"replica is {replica}; {workdir} has one, 0")
    model = models.build(config["model"], mean=config["dataset"]["mean"], std=config["dataset"]["std"])
    return Run(str(workdir), config, step, model, variables)
