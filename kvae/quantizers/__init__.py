"""Quantiser layers for any Flax model. They do not depend on kvae's models, data sets or runs."""

from kvae.quantizers.base import GRADIENTS, Quantized, Quantizer
from kvae.quantizers.fsq import FSQ, SQUASHINGS
from kvae.quantizers.lookup_free import BSQ, LFQ
from kvae.quantizers.maps import DISTANCE_METRICS, PULLS, GradientVQ, KohonenVQ
from kvae.quantizers.simvq import SimVQ
from kvae.quantizers.stacks import GroupedVQ, ResidualVQ

__all__ = [
    "BSQ",
    "DISTANCE_METRICS",
    "FSQ",
    "GRADIENTS",
    "LFQ",
    "PULLS",
    "QUANTIZERS",
    "SQUASHINGS",
    "GradientVQ",
    "GroupedVQ",
    "KohonenVQ",
    "Quantized",
    "Quantizer",
    "ResidualVQ",
    "SimVQ",
]

QUANTIZERS: dict[str, type[Quantizer]] = {
    "kohonen": KohonenVQ,
    "gradient": GradientVQ,
    "simvq": SimVQ,
    "fsq": FSQ,
    "lfq": LFQ,
    "bsq": BSQ,
    "residual": ResidualVQ,
    "grouped": GroupedVQ,
}
"""Maps the values of `config.model.quantizer.name` to layer classes."""
