"""Digests that detect changed values in checkpoints and weight files."""

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
      A dict from the path of each leaf, such as "params/encoder/kernel", to the BLAKE2b digest (16 bytes, in hex) of
      its dtype, shape and bytes. Attributes, dict keys and list indices look the same in a path, because a saved
      state is restored as nested dicts.

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
    """Computes the BLAKE2b digest (16 bytes, in hex) of a value's JSON with sorted keys."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()
