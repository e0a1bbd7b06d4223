"""Sampling from a prior, code by code, with a cache of keys and values."""

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from kvae.models.priors.model import Prior

STEPS_AT_ONCE = 64
"""Number of positions between two reports of progress."""


class Filter(NamedTuple):
    """Changes to the probabilities before a code is drawn; the defaults change nothing.

    Attributes:
      temperature: logits are divided by it; 0 takes the likeliest code.
      top_k: number of likeliest codes that may be drawn; 0 allows all.
      top_p: only the fewest likeliest codes whose probabilities sum to this much may be drawn ("nucleus sampling",
        Holtzman et al., arXiv:1904.09751).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


UNFILTERED = Filter()


def filtered(log_probabilities: jax.Array, options: Filter) -> jax.Array:
    """Returns logits of the codes that may be drawn: the temperature is applied first, then top_k, then top_p.

    Example:
      >>> import jax.numpy as jnp
      >>> jnp.isfinite(filtered(jnp.log(jnp.array([0.5, 0.3, 0.2])), Filter(top_p=0.6))).tolist()
      [True, True, False]

    Args:
      log_probabilities: float32 [..., K].
      options: the filter; its numbers may be traced.

    Returns:
      float32 [..., K], -inf for codes that may not be drawn; not normalised.
    """
    cold = options.temperature == 0
    logits = jax.nn.log_softmax(log_probabilities / jnp.where(cold, 1.0, options.temperature))
    order = jnp.argsort(-logits, axis=-1)  # stable: of equally likely codes the first is kept
    ranks = jnp.argsort(order, axis=-1)
    limit = jnp.where(cold, 1, jnp.where(options.top_k > 0, options.top_k, logits.shape[-1]))
    logits = jax.nn.log_softmax(jnp.where(ranks < limit, logits, -jnp.inf))
    falling = jnp.exp(jnp.take_along_axis(logits, order, axis=-1))
    likelier = jnp.take_along_axis(jnp.cumsum(falling, axis=-1) - falling, ranks, axis=-1)
    return jnp.where((likelier < options.top_p) | (ranks == 0), logits, -jnp.inf)


def sample(
    model: "Prior",
    variables: Mapping[str, Any],
    keys: jax.Array,
    *,
    label: np.ndarray | None = None,
    options: Filter = UNFILTERED,
    codes: Mapping[str, np.ndarray] | None = None,
    mask: Mapping[str, np.ndarray] | None = None,
    report: Callable[[int], Any] = lambda positions: None,
) -> dict[str, np.ndarray]:
    """Samples the codes of n images, each from its own key, so that an image does not depend on the others.

    Args:
      model: the prior.
      variables: its variables.
      keys: random keys [n].
      label: int [n], for a conditional prior.
      options: the filter of the probabilities.
      codes: codes that are kept where the mask is False, by codebook, int [n, h', w'] or [n, h', w', q].
      mask: bool arrays of the same shapes, True for codes to sample. A sampled code depends on the codes before it in
        the layout, kept or sampled, but not on kept codes after it.
      report: called with the number of positions done since the last call.

    Returns:
      int32 arrays by codebook.
    """
    layout, count = model.layout, len(keys)
    kept, given = np.zeros((count, layout.length), bool), np.zeros((count, layout.length), np.int32)
    if codes is not None:
        given = np.asarray(layout.to_sequence(codes), np.int32)
        kept = ~np.asarray(layout.to_sequence(mask), bool)
    state = _start(model, variables, jnp.asarray(given))
    for first in range(0, layout.length, STEPS_AT_ONCE):
        last = min(first + STEPS_AT_ONCE, layout.length)
        state = _advance(model, variables, state, (first, last), keys, label, jnp.asarray(kept), options)
        jax.block_until_ready(state)
        report(last - first)
    return jax.device_get(layout.to_codes(state[1]))


@functools.partial(jax.jit, static_argnums=0)
def _start(model: "Prior", variables: Mapping[str, Any], given: jax.Array) -> tuple[Any, jax.Array]:
    """Returns the state before the first position: an empty cache and the codes, int32 [n, T]."""
    x = jax.ShapeDtypeStruct((*given.shape, model.width), jnp.float32)
    _, created = jax.eval_shape(functools.partial(model.apply, method="decode", mutable=["cache"]), variables, x)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), created["cache"]), given


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _advance(
    model: "Prior",
    variables: Mapping[str, Any],
    state: tuple[Any, jax.Array],
    bounds: tuple[jax.Array, jax.Array],
    keys: jax.Array,
    label: jax.Array | None,
    kept: jax.Array,
    options: Filter,
) -> tuple[Any, jax.Array]:
    """Returns the state after the positions from bounds[0] to bounds[1] - 1."""
    layout = model.layout
    start, vectors, context, factors = model.apply(variables, label, method="sampling_parts")
    largest, levels = max(level.size for level in layout.levels), jnp.asarray(layout.level)
    offsets = jnp.asarray([level.first for level in layout.levels], jnp.int32)

    def predict(level: int) -> Callable[[jax.Array], jax.Array]:
        absent = largest - layout.levels[level].size
        return lambda hidden: jnp.pad(
            factors[level].log_probabilities(hidden), ((0, 0), (0, absent)), constant_values=-jnp.inf
        )

    def advance(t: jax.Array, state: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        cache, codes = state
        before = jnp.maximum(t - 1, 0)
        previous = vectors[codes[:, before] + offsets[levels[before]]]
        x = jnp.where(t == 0, start[None], previous) + context[:, t]
        hidden, updated = model.apply({**variables, "cache": cache}, x[:, None], method="decode", mutable=["cache"])
        logits = jax.lax.switch(levels[t], [predict(level) for level in range(len(factors))], hidden[:, 0])
        keys_of_step = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
        drawn = jax.vmap(jax.random.categorical)(keys_of_step, filtered(logits, options))
        codes = codes.at[:, t].set(jnp.where(kept[:, t], codes[:, t], drawn.astype(jnp.int32)))
        return updated["cache"], codes

    return jax.lax.fori_loop(*bounds, advance, state)
