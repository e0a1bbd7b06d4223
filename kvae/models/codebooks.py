"""The names of codebooks, where one quantiser may have several.

A model names its quantisers; the i-th codebook of one that has several is `<name>_<i>`.
"""

from collections.abc import Mapping

import numpy as np


def part_of(name: str, i: int) -> str:
    """The name of the i-th codebook of a quantiser that has several."""
    return f"{name}_{i}"


def part_names(name: str, count: int) -> list[str]:
    """The names of a quantiser's codebooks: its own, where there is but one."""
    return [name] if count == 1 else [part_of(name, i) for i in range(count)]


def parts_of(codebooks: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Mapping[str, np.ndarray]]:
    """Tallies by codebook; those of a quantiser with q codebooks, [q, ...], become q of their own."""
    found = {}
    for name, tally in codebooks.items():
        if tally["counts"].ndim == 1:
            found[name] = tally
            continue
        for i in range(len(tally["counts"])):
            found[part_of(name, i)] = {key: values[i] for key, values in tally.items()}
    return found


def suffix(codebook: str) -> str:
    """What a metric's or a picture's name ends in: nothing for `codebook`, else `_top`, `_bottom`, `_0`."""
    return codebook.removeprefix("codebook") if codebook.startswith("codebook") else f"_{codebook}"


def level(codebook: str) -> str:
    """Which codebook it is, in words, such as `top 0`; nothing for `codebook`."""
    return suffix(codebook).removeprefix("_").replace("_", " ")
