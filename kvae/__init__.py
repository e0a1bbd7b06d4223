"""Kohonen-VAE for JAX: VQ-VAEs whose codebook is a self-organising map."""

import importlib

_HOME = {
    "KohonenVQ": "kvae.quantizers",
    "GradientVQ": "kvae.quantizers",
    "FSQ": "kvae.quantizers",
    "ResidualVQ": "kvae.quantizers",
    "GroupedVQ": "kvae.quantizers",
    "Model": "kvae.models.model",
    "LossAndMetrics": "kvae.models.model",
    "Metric": "kvae.models.model",
    "SOM": "kvae.som",
    "load": "kvae.runs.opening",
    "from_pretrained": "kvae.runs.opening",
    "from_torch": "kvae.runs.from_torch",
    "train": "kvae.runs.opening",
    "read_config": "kvae.training.config.command_line",
    "InputError": "kvae.core.errors",
    # What a program of the user's own may be added to, by assignment.
    "DATASETS": "kvae.data",
    "GRIDS": "kvae.grids",
    "MODELS": "kvae.models",
    "NEIGHBORHOODS": "kvae.topology",
    "QUANTIZERS": "kvae.quantizers",
}

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
    "testing": "kvae.testing",
    "topology": "kvae.topology",
}

__all__ = sorted([*_HOME, *_MODULES])


def __getattr__(name):
    """Imports what is asked for, when it is asked for: `import kvae` stays light."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    raise AttributeError(f"module 'kvae' has no attribute {name!r}")


def __dir__():
    return [*globals(), *__all__]
