"""Digests: what a checkpoint must be when it is read again."""

import hashlib
import json

import jax
import numpy as np


def digests(tree) -> dict[str, str]:
    """A digest of each leaf's type, shape and bytes, by its path: BLAKE2b of 16 bytes."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(jax.device_get(leaf))
        digest = hashlib.blake2b(f"{array.dtype}{array.shape}".encode(), digest_size=16)
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        # Attributes, keys and indices look alike once a state is read back as nested dicts.
        found["/".join(str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path)] = (
            digest.hexdigest()
        )
    return found


def digest_of_json(value) -> str:
    """A digest of a value as JSON has it."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()
