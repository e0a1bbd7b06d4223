"""Quantiser layers for any Flax model. They need no kvae model, data set or run."""

from kvae.quantizers.base import GRADIENTS, Quantized, Quantizer
from kvae.quantizers.fsq import FSQ
from kvae.quantizers.maps import DISTANCE_METRICS, PULLS, GradientVQ, KohonenVQ
from kvae.quantizers.stacks import GroupedVQ, ResidualVQ

__all__ = [
    "DISTANCE_METRICS",
    "FSQ",
    "GRADIENTS",
    "PULLS",
    "QUANTIZERS",
    "GradientVQ",
    "GroupedVQ",
    "KohonenVQ",
    "Quantized",
    "Quantizer",
    "ResidualVQ",
]

QUANTIZERS: dict[str, type[Quantizer]] = {
    "kohonen": KohonenVQ,
    "gradient": GradientVQ,
    "fsq": FSQ,
    "residual": ResidualVQ,
    "grouped": GroupedVQ,
}
"""Maps the names that `config.model.quantizer.name` accepts to layers."""
