"""The names of codebooks, where one quantiser may have several.

A model names its quantisers; the i-th codebook of one that has several is `<name>_<i>`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def part_names(name: str, n_codebooks: int | None) -> list[str]:
    """The names of a quantiser's codebooks: its own, where it is not made of several."""
    return [name] if n_codebooks is None else [f"{name}_{i}" for i in range(n_codebooks)]


def split(name: str, n_codebooks: int | None, values: Any) -> dict[str, Any]:
    """By codebook, what a quantiser has of each: trees of arrays [q, ...], or one tree where it has but one."""
    if n_codebooks is None:
        return {name: values}
    return {
        part: jax.tree.map(lambda array, i=i: array[i], values) for i, part in enumerate(part_names(name, n_codebooks))
    }


def tallies_of(tallies: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Mapping[str, np.ndarray]]:
    """Tallies by codebook, from those by quantiser."""
    found = {}
    for name, tally in tallies.items():
        counts = tally["counts"]
        found |= split(name, len(counts) if counts.ndim == 2 else None, tally)
    return found


def suffix(codebook: str) -> str:
    """What a metric's or a picture's name ends in: nothing for `codebook`, else `_top`, `_bottom`, `_0`."""
    return codebook.removeprefix("codebook") if codebook.startswith("codebook") else f"_{codebook}"


def level(codebook: str) -> str:
    """Which codebook it is, in words, such as `top 0`; nothing for `codebook`."""
    return suffix(codebook).removeprefix("_").replace("_", " ")
