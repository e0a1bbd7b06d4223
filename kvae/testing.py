"""A conformance kit for quantisers in JAX: call `check_quantizer` in a test of your own quantiser.

Example:
  >>> import kvae
  >>> def test_my_quantizer():
  ...     kvae.testing.check_quantizer(lambda: kvae.FSQ(levels=(5, 3)))
  >>> test_my_quantizer()
"""

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kvae.quantizers.base import Quantizer

POSITIONS = (16, 6)
"""Leading shape of the vectors in most checks."""


class Output(NamedTuple):
    """The output that is checked: quantised vectors [..., d], codes int [...] or [..., q], and the loss []."""

    quantized: jax.Array
    codes: jax.Array
    loss: jax.Array


class Subject(Protocol):
    """A quantiser as pure functions. Write one for a quantiser that is not called like the layers of kvae."""

    def init(self, key: jax.Array, z: jax.Array) -> Any:
        """Returns the state before training, any tree of arrays, for vectors float [..., d]."""

    def apply(self, state: Any, z: jax.Array, train: bool, mask: jax.Array | None) -> tuple[Output, Any]:
        """Returns the output and the new state, for vectors float [..., d] and an optional mask bool [...]."""


@dataclasses.dataclass(frozen=True)
class _Linen:
    layer: nn.Module

    def init(self, key: jax.Array, z: jax.Array) -> Any:
        return jax.jit(self.layer.init)({"params": key, "dropout": key}, z)

    def apply(self, state: Any, z: jax.Array, train: bool, mask: jax.Array | None) -> tuple[Output, Any]:
        rngs = {"dropout": jax.random.key(0)}
        out, updated = self.layer.apply(state, z, train=train, mask=mask, rngs=rngs, mutable=["codebook"])
        return Output(out.quantized, out.codes, out.loss), {**state, **updated}


@dataclasses.dataclass(frozen=True)
class _Nnx:
    module: Any

    def init(self, key: jax.Array, z: jax.Array) -> Any:
        return nnx.to_pure_dict(nnx.state(self.module))

    def apply(self, state: Any, z: jax.Array, train: bool, mask: jax.Array | None) -> tuple[Output, Any]:
        graph, old = nnx.split(self.module)
        old = jax.tree.map(lambda leaf: leaf, old)
        nnx.replace_by_pure_dict(old, state)
        module = nnx.merge(graph, old, copy=True)
        out = module(z, train=train, mask=mask)
        return Output(out.quantized, out.codes, out.loss), nnx.to_pure_dict(nnx.state(module))


def _as_subject(layer: Any) -> Subject:
    if isinstance(layer, nn.Module):
        return _Linen(layer)
    return layer if hasattr(layer, "apply") else _Nnx(layer)


class Trial:
    """The argument of each check: a quantiser, its state after three updates, and vectors z, float32 [16, 6, d]."""

    def __init__(self, subject: Subject, dimension: int):
        self.subject, self.dimension = subject, dimension
        self.z = self.vectors(0)
        self.state = subject.init(jax.random.key(0), self.z)
        for seed in range(1, 4):
            _, self.state = self.apply(self.state, self.vectors(seed), train=True)

    @property
    def layer(self) -> Quantizer | None:
        """The quantiser if it is a linen layer of kvae, else None."""
        layer = getattr(self.subject, "layer", None)
        return layer if isinstance(layer, Quantizer) else None

    def vectors(self, seed: int, *leading: int) -> jax.Array:
        """Draws random vectors, float32 [16, 6, d] or [*leading, d]."""
        return jax.random.normal(jax.random.key(seed), (*(leading or POSITIONS), self.dimension))

    def apply(self, state: Any, z: jax.Array, train: bool = False, mask: jax.Array | None = None) -> tuple[Output, Any]:
        """Calls the compiled quantiser: see `Subject.apply`."""
        return _compiled(self.subject.apply, train)(state, z, mask)


@functools.lru_cache(maxsize=256)
def _compiled(apply, train):
    return jax.jit(lambda state, z, mask: apply(state, z, train, mask))


def evaluation_is_training_without_learning(trial: Trial) -> None:
    """Training and evaluation return the same output."""
    trained, _ = trial.apply(trial.state, trial.z, train=True)
    evaluated, _ = trial.apply(trial.state, trial.z)
    _assert_equal(trained, evaluated, "training and evaluation differ")


def evaluation_moves_nothing(trial: Trial) -> None:
    """Evaluation does not change the state, bit for bit."""
    _assert_equal(trial.apply(trial.state, trial.z)[1], trial.state, "evaluation changed the state")


def codes_are_integers_in_range(trial: Trial) -> None:
    """Codes are integers from 0, in the shape of the positions."""
    codes = np.asarray(trial.apply(trial.state, trial.z)[0].codes)
    assert np.issubdtype(codes.dtype, np.integer), f"codes are {codes.dtype}"
    assert codes.shape[: len(POSITIONS)] == POSITIONS, f"codes are {codes.shape} for positions {POSITIONS}"
    if trial.layer is not None:
        n_codebooks = trial.layer.n_codebooks
        expected = POSITIONS if n_codebooks is None else (*POSITIONS, n_codebooks)
        assert codes.shape == expected, f"codes are {codes.shape}, and n_codebooks is {n_codebooks}"
    assert codes.min() >= 0, f"the lowest code is {codes.min()}"


def equal_codes_mean_equal_vectors(trial: Trial) -> None:
    """Positions with the same code have the same quantised vector."""
    out, _ = trial.apply(trial.state, trial.z)
    codes = np.asarray(out.codes).reshape(POSITIONS[0] * POSITIONS[1], -1)
    vectors = np.asarray(out.quantized).reshape(len(codes), -1)
    for code in np.unique(codes, axis=0):
        members = vectors[np.all(codes == code, axis=1)]
        same = members[:1].repeat(len(members), 0)
        np.testing.assert_allclose(members, same, atol=1e-5, err_msg=f"vectors of code {code}")


def gradients_reach_the_encoder(trial: Trial) -> None:
    """The gradient with respect to z is finite and not 0."""
    weights = trial.vectors(9)
    gradient = jax.grad(lambda z: jnp.sum(trial.apply(trial.state, z, train=True)[0].quantized * weights))(trial.z)
    assert np.all(np.isfinite(gradient)), "the gradient is not finite"
    assert np.any(gradient), "the gradient is 0"


def masked_positions_do_not_count(trial: Trial) -> None:
    """Masked positions change neither the loss nor the state."""
    out, state = trial.apply(trial.state, trial.z, train=True)
    padded, padded_state = _flat_and_padded(trial)
    _assert_close(padded.loss, out.loss, "masked positions change the loss")
    _assert_close(padded_state, state, "masked positions change the state")


def _flat_and_padded(trial: Trial) -> tuple[Output, Any]:
    """Trains on the vectors, float32 [96, d], followed by masked outliers."""
    flat = trial.z.reshape(-1, trial.dimension)
    mask = jnp.arange(len(flat) + 24) < len(flat)
    return trial.apply(trial.state, jnp.concatenate([flat, 100 * trial.vectors(8, 24)]), train=True, mask=mask)


def a_nan_stays_where_it_is(trial: Trial) -> None:
    """A NaN, infinity or huge number in one vector changes no other code, and leaves the state finite."""
    out, _ = trial.apply(trial.state, trial.z, train=True)
    for value in (np.nan, np.inf, 3e38):
        odd, state = trial.apply(trial.state, trial.z.at[0, 0].set(value), train=True)
        np.testing.assert_array_equal(odd.codes[1:], out.codes[1:], f"{value} in one vector changes other codes")
        assert all(np.all(np.isfinite(leaf)) for leaf in _numbers(state)), f"{value} in one vector reaches the state"


def one_device_is_many(trial: Trial) -> None:
    """A batch sharded over all devices gives the result of one device, in meshes with Auto and with Explicit axes."""
    single = trial.apply(trial.state, trial.z, train=True)
    count = next(n for n in range(min(jax.device_count(), POSITIONS[0]), 0, -1) if POSITIONS[0] % n == 0)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = Mesh(np.array(jax.devices()[:count]), "data", axis_types=(kind,))
        with jax.set_mesh(mesh):
            z = jax.device_put(trial.z, NamedSharding(mesh, PartitionSpec("data")))
            state = jax.device_put(trial.state, NamedSharding(mesh, PartitionSpec()))
            sharded = jax.jit(lambda state, z: trial.subject.apply(state, z, True, None))(state, z)
        np.testing.assert_array_equal(sharded[0].codes, single[0].codes, f"codes on {count} devices, {kind}")
        _assert_close(jax.device_get(sharded[1]), single[1], f"the state on {count} devices, {kind}")


def half_precision_is_compared_in_single(trial: Trial) -> None:
    """Vectors in bfloat16 get the codes, and lead to the state, of the same vectors in float32."""
    for seed in range(40):  # enough that some vectors are halfway between two codewords
        z = trial.vectors(seed).astype(jnp.bfloat16)
        half, state = trial.apply(trial.state, z, train=True)
        single, other = trial.apply(trial.state, z.astype(jnp.float32), train=True)
        np.testing.assert_array_equal(half.codes, single.codes, "codes of bfloat16 vectors differ")
        assert half.quantized.dtype == jnp.bfloat16, f"bfloat16 becomes {half.quantized.dtype}"
        _assert_close(state, other, "the state learns from bfloat16 vectors in half precision")


def compiled_is_eager(trial: Trial) -> None:
    """`jit` changes neither codes nor state."""
    compiled = trial.apply(trial.state, trial.z, train=True)
    with jax.disable_jit():
        eager = trial.subject.apply(trial.state, trial.z, True, None)
    np.testing.assert_array_equal(compiled[0].codes, eager[0].codes, "codes under jit differ")
    _assert_close(compiled[1], eager[1], "the state under jit differs")


def statistics_of_halves_add_up(trial: Trial) -> None:
    """A linen layer of kvae learns the same from a batch and from the added statistics of its halves."""
    layer = trial.layer
    if layer is None:
        return

    @jax.jit
    def learned(state, z):
        quantize = functools.partial(layer.apply, state, method="quantize", rngs={"dropout": jax.random.key(0)})
        halves = [quantize(half, train=True).statistics for half in jnp.split(z, 2)]
        return layer.apply(state, jax.tree.map(jnp.add, *halves), method="update", mutable=["codebook"])[1]

    whole = trial.apply(trial.state, trial.z, train=True)[1]
    _assert_close({**trial.state, **learned(trial.state, trial.z)}, whole, "statistics of halves do not add up")


def any_leading_shape(trial: Trial) -> None:
    """The leading shape of the vectors does not change their codes."""
    out, _ = trial.apply(trial.state, trial.z, train=True)
    flat = _flat_and_padded(trial)[0].codes[: trial.z[..., 0].size]
    np.testing.assert_array_equal(flat.reshape(out.codes.shape), out.codes, "codes of flattened vectors differ")


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
"""Maps names to the checks of the kit."""


def failures(make_layer: Callable[[], Any], dimension: int = 16, without: Collection[str] = ()) -> dict[str, str]:
    """Returns the reasons of all checks that fail, by the names of the checks.

    Args:
      make_layer: function that returns the quantiser: a linen or NNX layer called like those of kvae, or a `Subject`.
      dimension: d, the length of the vectors.
      without: names of checks to leave out.
    """
    trial, reasons = Trial(_as_subject(make_layer()), dimension), {}
    for name, check in CHECKS.items():
        if name not in without:
            try:
                check(trial)
            except Exception as error:  # a foreign layer may fail in any way
                reasons[name] = " ".join(str(error).split())[:300] or type(error).__name__
    return reasons


def check_quantizer(make_layer: Callable[[], Any], dimension: int = 16, without: Collection[str] = ()) -> None:
    """Raises AssertionError, naming every check that fails, unless a quantiser passes the kit.

    Args:
      make_layer, dimension, without: see `failures`.
    """
    reasons = failures(make_layer, dimension, without)
    assert not reasons, "\n".join(f"{name} ({CHECKS[name].__doc__}): {reason}" for name, reason in reasons.items())


def _numbers(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.number)]


def _assert_equal(one: Any, other: Any, message: str) -> None:
    for a, b in zip(_numbers(one), _numbers(other), strict=True):
        np.testing.assert_array_equal(a, b, message)


def _assert_close(one: Any, other: Any, message: str) -> None:
    for a, b in zip(_numbers(one), _numbers(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=message)
