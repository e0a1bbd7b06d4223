"""Quantiser layers for any Flax model: they need no model of kvae's, no data and no run."""

from kvae.quantizers.base import Quantized, Quantizer
from kvae.quantizers.fsq import FSQ
from kvae.quantizers.maps import GradientVQ, KohonenVQ
from kvae.quantizers.stacks import GroupedVQ, ResidualVQ

__all__ = ["FSQ", "QUANTIZERS", "GradientVQ", "GroupedVQ", "KohonenVQ", "Quantized", "Quantizer", "ResidualVQ"]

QUANTIZERS: dict[str, type[Quantizer]] = {
    "kohonen": KohonenVQ,
    "gradient": GradientVQ,
    "fsq": FSQ,
    "residual": ResidualVQ,
    "grouped": GroupedVQ,
}
"""Maps the names that `config.model.quantizer.name` accepts to layers."""
