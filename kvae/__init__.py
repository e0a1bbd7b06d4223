"""Kohonen-VAE for JAX: VQ-VAEs whose codebook is a self-organising map."""

import importlib

_HOME = {"KohonenVQ": "kvae.models.quantizers", "GradientVQ": "kvae.models.quantizers", "load": "kvae.run"}

__all__ = sorted(_HOME)


def __getattr__(name):
    """Imports what is asked for, when it is asked for: `import kvae` stays light."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'kvae' has no attribute {name!r}")


def __dir__():
    return [*globals(), *__all__]
