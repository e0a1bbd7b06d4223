"""Kohonen-VAE for JAX: VQ-VAEs whose codebook is a self-organising map."""

import importlib

_HOME = {
    "KohonenVQ": "kvae.models",
    "GradientVQ": "kvae.models",
    "FSQ": "kvae.models",
    "ResidualVQ": "kvae.models",
    "GroupedVQ": "kvae.models",
    "Model": "kvae.models.model",
    "Objective": "kvae.models.model",
    "Metric": "kvae.models.model",
    "SOM": "kvae.som",
    "load": "kvae.run",
    "from_pretrained": "kvae.run",
    "from_torch": "kvae.torch_weights",
    "train": "kvae.run",
    "read_config": "kvae.training.command_line",
    "InputError": "kvae.errors",
    # What a program of the user's own may be added to, by assignment.
    "DATASETS": "kvae.data",
    "GRIDS": "kvae.grids",
    "MODELS": "kvae.models",
    "NEIGHBORHOODS": "kvae.topology",
    "QUANTIZERS": "kvae.models",
}

_MODULES = (
    "classic",
    "data",
    "export",
    "grids",
    "kohonen",
    "measures",
    "models",
    "nnx",
    "plots",
    "testing",
    "topology",
)

__all__ = sorted([*_HOME, *_MODULES])


def __getattr__(name):
    """Imports what is asked for, when it is asked for: `import kvae` stays light."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"kvae.{name}")
    raise AttributeError(f"module 'kvae' has no attribute {name!r}")


def __dir__():
    return [*globals(), *__all__]
