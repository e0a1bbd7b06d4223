"""Digests that show whether a checkpoint or a file of weights still holds the values that were saved."""

import hashlib
import json
from typing import Any

import jax
import numpy as np


def digests(tree: Any) -> dict[str, str]:
    """Computes a digest of each leaf of a tree of arrays.

    Args:
      tree: Any JAX tree of arrays, on devices or on the host.

    Returns:
      The BLAKE2b digest (16 bytes, in hex) of each leaf's dtype, shape and bytes, by the leaf's path, such as
      "params/encoder/kernel". Attributes, dict keys and list indices are written the same way, because a state is
      read back as nested dicts.

    Example:
      >>> digests({"a": {"b": np.zeros(2, np.float32)}})
      {'a/b': '7ddca1590728b67e7eb205c423e55c08'}
    """
    by_path = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(jax.device_get(leaf))
        digest = hashlib.blake2b(f"{array.dtype}{array.shape}".encode(), digest_size=16)
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        keys = (str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path)
        by_path["/".join(keys)] = digest.hexdigest()
    return by_path


def digest_of_json(value: Any) -> str:
    """Computes the BLAKE2b digest (16 bytes, in hex) of a value's JSON, with keys in sorted order."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()
