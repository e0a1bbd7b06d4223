"""Kohonen-VAE for JAX: VQ-VAEs whose codebook is a self-organising map.

The quantiser layers, from `KohonenVQ` to `ResidualVQ`, and their Flax NNX versions in `kvae.nnx`, need only the base
install. Runs (`load`, `train`, `from_pretrained`, `from_torch`, `read_config`), models and data sets need the extra
`train`. The scikit-learn estimator `SOM` and `plots` need the extra `som`.

Example:
  >>> import jax, jax.numpy as jnp, kvae
  >>> layer = kvae.KohonenVQ(grid_shape=(4, 8))
  >>> z = jnp.ones((2, 5, 5, 16))
  >>> variables = layer.init(jax.random.key(0), z)
  >>> out, updated = layer.apply(variables, z, train=True, mutable=["codebook"])
  >>> out.quantized.shape, out.codes.shape
  ((2, 5, 5, 16), (2, 5, 5))
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvae import classic, data, grids, kohonen, measures, models, nnx, plots, quantizers, som, testing, topology
    from kvae.core.errors import InputError
    from kvae.data import DATASETS
    from kvae.grids import GRIDS
    from kvae.models import MODELS
    from kvae.models.model import LossAndMetrics, Metric, Model
    from kvae.quantizers import (
        BSQ,
        FSQ,
        IBQ,
        LFQ,
        QUANTIZERS,
        GradientVQ,
        GroupedVQ,
        KohonenVQ,
        Quantized,
        ResidualVQ,
        SimVQ,
    )
    from kvae.runs import export
    from kvae.runs.from_torch import from_torch
    from kvae.runs.opening import from_pretrained, load, train
    from kvae.som import SOM, SOMClassifier, SOMRegressor
    from kvae.topology import NEIGHBORHOODS
    from kvae.training.config.command_line import read_config

__docformat__ = "google"

_HOMES = {
    "BSQ": "kvae.quantizers",
    "DATASETS": "kvae.data",
    "FSQ": "kvae.quantizers",
    "GRIDS": "kvae.grids",
    "IBQ": "kvae.quantizers",
    "GradientVQ": "kvae.quantizers",
    "GroupedVQ": "kvae.quantizers",
    "InputError": "kvae.core.errors",
    "KohonenVQ": "kvae.quantizers",
    "LFQ": "kvae.quantizers",
    "LossAndMetrics": "kvae.models.model",
    "MODELS": "kvae.models",
    "Metric": "kvae.models.model",
    "Model": "kvae.models.model",
    "NEIGHBORHOODS": "kvae.topology",
    "QUANTIZERS": "kvae.quantizers",
    "Quantized": "kvae.quantizers",
    "ResidualVQ": "kvae.quantizers",
    "SOM": "kvae.som",
    "SOMClassifier": "kvae.som",
    "SOMRegressor": "kvae.som",
    "SimVQ": "kvae.quantizers",
    "from_pretrained": "kvae.runs.opening",
    "from_torch": "kvae.runs.from_torch",
    "load": "kvae.runs.opening",
    "read_config": "kvae.training.config.command_line",
    "train": "kvae.runs.opening",
}
"""Maps each public name to the module that defines it."""

_MODULES = {
    "classic": "kvae.classic",
    "data": "kvae.data",
    "export": "kvae.runs.export",
    "grids": "kvae.grids",
    "kohonen": "kvae.kohonen",
    "measures": "kvae.measures",
    "models": "kvae.models",
    "nnx": "kvae.nnx",
    "plots": "kvae.plots",
    "quantizers": "kvae.quantizers",
    "som": "kvae.som",
    "testing": "kvae.testing",
    "topology": "kvae.topology",
}
"""Maps each public module to its import path."""

__all__ = [
    "BSQ",
    "DATASETS",
    "FSQ",
    "GRIDS",
    "IBQ",
    "LFQ",
    "MODELS",
    "NEIGHBORHOODS",
    "QUANTIZERS",
    "SOM",
    "GradientVQ",
    "GroupedVQ",
    "InputError",
    "KohonenVQ",
    "LossAndMetrics",
    "Metric",
    "Model",
    "Quantized",
    "ResidualVQ",
    "SOMClassifier",
    "SOMRegressor",
    "SimVQ",
    "classic",
    "data",
    "export",
    "from_pretrained",
    "from_torch",
    "grids",
    "kohonen",
    "load",
    "measures",
    "models",
    "nnx",
    "plots",
    "quantizers",
    "read_config",
    "som",
    "testing",
    "topology",
    "train",
]


def __getattr__(name: str) -> Any:
    """Imports a public name on first use, so that `import kvae` stays fast.

    Raises:
      InputError: the name needs an extra that is not installed.
    """
    if name not in _HOMES and name not in _MODULES:
        raise AttributeError(f"module 'kvae' has no attribute {name!r}")
    from kvae.core.errors import require_extra

    with require_extra("som" if name in ("SOM", "SOMClassifier", "SOMRegressor", "plots", "som") else "train"):
        module = importlib.import_module(_HOMES.get(name) or _MODULES[name])
    return getattr(module, name) if name in _HOMES else module


def __dir__() -> list[str]:
    return [*globals(), *__all__]


# pdoc reads the module's __dict__, where names that are imported on first use are missing.
if "pdoc" in sys.modules:
    globals().update({name: __getattr__(name) for name in __all__})
