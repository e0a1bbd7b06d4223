"""A kit that any quantiser in JAX can be put through: `kvae.testing.check_quantizer`.

def test_my_quantizer():
kvae.testing.check_quantizer(lambda: MyVQ(codes=64))
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kvae.quantizers.base import Quantizer

POSITIONS = (16, 6)


class Output(NamedTuple):
    """What is looked at of an output: quantised vectors [..., d], codes int [...] or [..., q], and the loss []."""

    quantized: jax.Array
    codes: jax.Array
    loss: jax.Array


class Subject(Protocol):
    """A quantiser as pure functions. Layers like those of kvae, linen or NNX, need none; write one for any other."""

    def init(self, key: jax.Array, z: jax.Array) -> Any:
        """The state before training, any tree of arrays, from vectors float [..., d]."""

    def apply(self, state: Any, z: jax.Array, train: bool, mask: jax.Array | None) -> tuple[Output, Any]:
        """The output, and the state after it."""


@dataclasses.dataclass(frozen=True)
class _Linen:
    layer: nn.Module

    def init(self, key, z):
        return jax.jit(self.layer.init)({"params": key, "dropout": key}, z)

    def apply(self, state, z, train, mask):
        rngs = {"dropout": jax.random.key(0)}
        out, updated = self.layer.apply(state, z, train=train, mask=mask, rngs=rngs, mutable=["codebook"])
        return Output(out.quantized, out.codes, out.loss), {**state, **updated}


@dataclasses.dataclass(frozen=True)
class _Nnx:
    module: Any

    def init(self, key, z):
        from flax import nnx

        return nnx.to_pure_dict(nnx.state(self.module))

    def apply(self, state, z, train, mask):
        from flax import nnx

        graph, old = nnx.split(self.module)
        old = jax.tree.map(lambda leaf: leaf, old)
        nnx.replace_by_pure_dict(old, state)
        module = nnx.merge(graph, old, copy=True)
        out = module(z, train=train, mask=mask)
        return Output(out.quantized, out.codes, out.loss), nnx.to_pure_dict(nnx.state(module))


def _subject(made) -> Subject:
    if isinstance(made, nn.Module):
        return _Linen(made)
    return made if hasattr(made, "apply") else _Nnx(made)


class Trial:
    """A subject with a state that has learned a little, and vectors for it.

    Args:
      subject: the quantiser.
      dimension: d.
    """

    def __init__(self, subject: Subject, dimension: int):
        self.subject, self.dimension = subject, dimension
        self.z = self.vectors(0)
        self.state = subject.init(jax.random.key(0), self.z)
        for seed in range(1, 4):
            _, self.state = self.apply(self.state, self.vectors(seed), train=True)

    @property
    def layer(self) -> Quantizer | None:
        """The layer that is tried, where it is one of kvae in linen."""
        layer = getattr(self.subject, "layer", None)
        return layer if isinstance(layer, Quantizer) else None

    def vectors(self, seed: int, *leading: int) -> jax.Array:
        """Random vectors, float32 [16, 6, d] or [*leading, d]."""
        return jax.random.normal(jax.random.key(seed), (*(leading or POSITIONS), self.dimension))

    def apply(self, state, z, *, train: bool = False, mask=None) -> tuple[Output, Any]:
        """The compiled quantiser."""
        return _compiled(self.subject.apply, train)(state, z, mask)


@functools.lru_cache(maxsize=256)
def _compiled(apply, train):
    return jax.jit(lambda state, z, mask: apply(state, z, train, mask))


def evaluation_is_training_without_learning(trial: Trial) -> None:
    """The output of training is that of evaluation."""
    trained, _ = trial.apply(trial.state, trial.z, train=True)
    evaluated, _ = trial.apply(trial.state, trial.z)
    _assert_equal(trained, evaluated, "training and evaluation differ")


def evaluation_moves_nothing(trial: Trial) -> None:
    """The state after an evaluation is the state before it, bit for bit."""
    _assert_equal(trial.apply(trial.state, trial.z)[1], trial.state, "evaluation changed the state")


def codes_are_integers_in_range(trial: Trial) -> None:
    """Codes are integers of the shape of the positions, from 0."""
    codes = np.asarray(trial.apply(trial.state, trial.z)[0].codes)
    assert np.issubdtype(codes.dtype, np.integer), f"codes are {codes.dtype}"
    assert codes.shape[: len(POSITIONS)] == POSITIONS, f"codes are {codes.shape} for positions {POSITIONS}"
    if trial.layer is not None:
        n_codebooks = trial.layer.n_codebooks
        several = () if n_codebooks is None else (n_codebooks,)
        assert codes.shape == POSITIONS + several, f"codes are {codes.shape}, and n_codebooks is {n_codebooks}"
    assert codes.min() >= 0, f"there is a code {codes.min()}"


def equal_codes_mean_equal_vectors(trial: Trial) -> None:
    """Positions with the same code have the same quantised vector."""
    out, _ = trial.apply(trial.state, trial.z)
    codes = np.asarray(out.codes).reshape(POSITIONS[0] * POSITIONS[1], -1)
    vectors = np.asarray(out.quantized).reshape(len(codes), -1)
    for code in np.unique(codes, axis=0):
        members = vectors[np.all(codes == code, axis=1)]
        np.testing.assert_allclose(members, members[:1].repeat(len(members), 0), atol=1e-5, err_msg=f"code {code}")


def gradients_reach_the_encoder(trial: Trial) -> None:
    """A gradient arrives at z, and is finite."""
    weights = trial.vectors(9)
    gradient = jax.grad(lambda z: jnp.sum(trial.apply(trial.state, z, train=True)[0].quantized * weights))(trial.z)
    assert np.all(np.isfinite(gradient)), "the gradient is not finite"
    assert np.any(gradient), "no gradient passes"


def masked_positions_do_not_count(trial: Trial) -> None:
    """A batch with masked positions is the batch without them: the same loss, the same state."""
    rubbish = 100 * trial.vectors(8, 4, POSITIONS[1])
    mask = jnp.arange(POSITIONS[0] + 4)[:, None] < jnp.full(POSITIONS[1:], POSITIONS[0])
    out, state = trial.apply(trial.state, trial.z, train=True)
    padded, padded_state = trial.apply(trial.state, jnp.concatenate([trial.z, rubbish]), train=True, mask=mask)
    _assert_close(padded.loss, out.loss, "the masked positions change the loss")
    _assert_close(padded_state, state, "the masked positions change the state")


def a_nan_stays_where_it_is(trial: Trial) -> None:
    """One vector that is not finite changes no other code, and leaves the state finite."""
    out, _ = trial.apply(trial.state, trial.z, train=True)
    hurt, state = trial.apply(trial.state, trial.z.at[0, 0].set(jnp.nan), train=True)
    np.testing.assert_array_equal(hurt.codes[1:], out.codes[1:], "a NaN changes other codes")
    assert all(np.all(np.isfinite(leaf)) for leaf in _numbers(state)), "a NaN in one vector is in the state now"


def one_device_is_many(trial: Trial) -> None:
    """A batch sharded over all devices gives what it gives on one; in a mesh with Auto and with Explicit axes."""
    alone = trial.apply(trial.state, trial.z, train=True)
    count = next(n for n in range(min(jax.device_count(), POSITIONS[0]), 0, -1) if POSITIONS[0] % n == 0)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = Mesh(np.array(jax.devices()[:count]), "data", axis_types=(kind,))
        with jax.set_mesh(mesh):
            z = jax.device_put(trial.z, NamedSharding(mesh, PartitionSpec("data")))
            state = jax.device_put(trial.state, NamedSharding(mesh, PartitionSpec()))
            together = jax.jit(lambda state, z: trial.subject.apply(state, z, True, None))(state, z)
        np.testing.assert_array_equal(together[0].codes, alone[0].codes, f"codes on {count} devices, {kind}")
        _assert_close(jax.device_get(together[1]), alone[1], f"the state on {count} devices, {kind}")


def half_precision_is_compared_in_single(trial: Trial) -> None:
    """Vectors in bfloat16 get the codes of the same vectors in float32, and are learned from in float32."""
    z = trial.vectors(7, 4096).astype(jnp.bfloat16)  # so many that some lie between two codewords
    half, state = trial.apply(trial.state, z, train=True)
    single, other = trial.apply(trial.state, z.astype(jnp.float32), train=True)
    np.testing.assert_array_equal(half.codes, single.codes, "codes of bfloat16 vectors are others")
    assert half.quantized.dtype == jnp.bfloat16, f"bfloat16 becomes {half.quantized.dtype}"
    _assert_close(state, other, "bfloat16 vectors are learned from in half precision")


def compiled_is_eager(trial: Trial) -> None:
    """`jit` changes nothing."""
    compiled = trial.apply(trial.state, trial.z, train=True)
    with jax.disable_jit():
        eager = trial.subject.apply(trial.state, trial.z, True, None)
    np.testing.assert_array_equal(compiled[0].codes, eager[0].codes, "codes under jit are others")
    _assert_close(compiled[1], eager[1], "the state under jit is another")


def statistics_of_halves_add_up(trial: Trial) -> None:
    """A layer of kvae learns from the sum of the statistics of two halves what it learns from the whole."""
    layer = trial.layer
    if layer is None:
        return

    @jax.jit
    def learned(state, z):
        quantize = functools.partial(layer.apply, state, method="quantize", rngs={"dropout": jax.random.key(0)})
        halves = [quantize(half, train=True).statistics for half in jnp.split(z, 2)]
        return layer.apply(state, jax.tree.map(jnp.add, *halves), method="update", mutable=["codebook"])[1]

    updated = learned(trial.state, trial.z)
    _assert_close({**trial.state, **updated}, trial.apply(trial.state, trial.z, train=True)[1], "halves add up to else")


def any_leading_shape(trial: Trial) -> None:
    """A position is quantised the same whatever the leading shape."""
    out, _ = trial.apply(trial.state, trial.z)
    flat, _ = trial.apply(trial.state, trial.z.reshape(-1, trial.dimension))
    np.testing.assert_array_equal(flat.codes.reshape(out.codes.shape), out.codes)


CHECKS: dict[str, Callable[[Trial], None]] = {
    check.__name__: check
    for check in (
        evaluation_is_training_without_learning,
        evaluation_moves_nothing,
        codes_are_integers_in_range,
        equal_codes_mean_equal_vectors,
        gradients_reach_the_encoder,
        masked_positions_do_not_count,
        a_nan_stays_where_it_is,
        one_device_is_many,
        half_precision_is_compared_in_single,
        compiled_is_eager,
        any_leading_shape,
        statistics_of_halves_add_up,
    )
}
"""What is asked of a quantiser, by name."""


def failures(make_layer: Callable[[], Any], dimension: int = 16, without: Collection[str] = ()) -> dict[str, str]:
    """Puts a quantiser through `CHECKS`; by name, why those failed that did.

    Args:
      make_layer: makes the layer, or is it: of kvae or like it, linen or NNX, or a `Subject`.
      dimension: d of the vectors.
      without: names of checks to leave out.
    """
    makes_one = (
        inspect.isroutine(make_layer) or inspect.isclass(make_layer) or isinstance(make_layer, functools.partial)
    )
    trial, found = Trial(_subject(make_layer() if makes_one else make_layer), dimension), {}
    for name, check in CHECKS.items():
        if name not in without:
            try:
                check(trial)
            except Exception as error:  # a foreign layer may fail in any way
                found[name] = " ".join(str(error).split())[:300] or type(error).__name__
    return found


def check_quantizer(make_layer: Callable[[], Any], dimension: int = 16, without: Collection[str] = ()) -> None:
    """Raises AssertionError where a quantiser fails some of `CHECKS`, and names all of them. See `failures`."""
    found = failures(make_layer, dimension, without)
    assert not found, "\n".join(f"{name} ({CHECKS[name].__doc__}): {why}" for name, why in found.items())


def _numbers(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.number)]


def _assert_equal(one, other, message):
    for a, b in zip(_numbers(one), _numbers(other), strict=True):
        np.testing.assert_array_equal(a, b, message)


def _assert_close(one, other, message):
    for a, b in zip(_numbers(one), _numbers(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=message)
