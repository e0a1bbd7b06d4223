"""Quantiser layers for any Flax model. They do not depend on kvae's models, data sets or runs."""

from kvae.quantizers.base import Quantized, Quantizer
from kvae.quantizers.fsq import FSQ, SQUASHINGS
from kvae.quantizers.gradient_vq import PULLS, GradientVQ
from kvae.quantizers.gradients import GRADIENTS
from kvae.quantizers.ibq import IBQ
from kvae.quantizers.lookup_free import BSQ, LFQ
from kvae.quantizers.maps import DISTANCE_METRICS, KohonenVQ
from kvae.quantizers.simvq import SimVQ
from kvae.quantizers.stacks import CODEBOOKS, GroupedVQ, ResidualVQ
from kvae.quantizers.starts import STARTS

__all__ = [
    "BSQ",
    "CODEBOOKS",
    "DISTANCE_METRICS",
    "FSQ",
    "GRADIENTS",
    "IBQ",
    "LFQ",
    "PULLS",
    "QUANTIZERS",
    "SQUASHINGS",
    "STARTS",
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
    "ibq": IBQ,
    "fsq": FSQ,
    "lfq": LFQ,
    "bsq": BSQ,
    "residual": ResidualVQ,
    "grouped": GroupedVQ,
}
"""Maps the values of `config.model.quantizer.name` to layer classes."""
