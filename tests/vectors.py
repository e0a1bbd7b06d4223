"""Random vectors for tests, the same in every run."""

import numpy as np

RNG = np.random.default_rng(0)
DATA = RNG.normal(size=(200, 5)).astype(np.float32)
START = DATA[:12] + 0.01


def vectors(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
