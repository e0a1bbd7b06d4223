"""Invariants of quantisers. Each check is a function that raises AssertionError if the quantiser violates it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kvae.quantizers import DISTANCE_METRICS
from kvae.testing.subjects import POSITIONS, Output, Trial


def evaluation_is_training_without_learning(trial: Trial) -> None:
    """Training and evaluation return the same output."""
    trained, _ = trial.apply(trial.state, trial.z, train=True)
    evaluated, _ = trial.apply(trial.state, trial.z)
    _assert_equal(trained, evaluated, "training and evaluation differ")


def evaluation_moves_nothing(trial: Trial) -> None:
    """Evaluation does not change the state, bit for bit."""
    _assert_equal(trial.apply(trial.state, trial.z)[1], trial.state, "evaluation changed the state")


def codes_are_integers_in_range(trial: Trial) -> None:
    """Codes are integers, at least 0, in the shape of the positions."""
    codes = np.asarray(trial.apply(trial.state, trial.z)[0].codes)
    assert np.issubdtype(codes.dtype, np.integer), f"codes are {codes.dtype}; they must be integers"
    shape = f"codes have the shape {codes.shape}"
    assert codes.shape[: len(POSITIONS)] == POSITIONS, f"{shape}; it must start with {POSITIONS}, as for the vectors"
    if trial.layer is not None:
        n_codebooks = trial.layer.n_codebooks
        expected = POSITIONS if n_codebooks is None else (*POSITIONS, n_codebooks)
        assert codes.shape == expected, f"{shape}; with n_codebooks={n_codebooks} it must be {expected}"
    assert codes.min() >= 0, f"the lowest code is {codes.min()}; it must be at least 0"


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
    """A NaN, infinity or huge value in one vector does not change other vectors' codes, and the state stays finite."""
    out, _ = trial.apply(trial.state, trial.z, train=True)
    for value in (np.nan, np.inf, 3e38):
        odd, state = trial.apply(trial.state, trial.z.at[0, 0].set(value), train=True)
        np.testing.assert_array_equal(odd.codes[1:], out.codes[1:], f"{value} in one vector changes other codes")
        assert all(np.all(np.isfinite(leaf)) for leaf in _numbers(state)), f"{value} in one vector reaches the state"


def one_device_is_many(trial: Trial) -> None:
    """A batch sharded over several devices gives the same result as one device, with Auto and with Explicit axes."""
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
    """Vectors in bfloat16 give the same codes and the same state as in float32."""
    for seed in range(40):  # enough for some vectors to be about halfway between two codewords
        z = trial.vectors(seed).astype(jnp.bfloat16)
        half, state = trial.apply(trial.state, z, train=True)
        single, other = trial.apply(trial.state, z.astype(jnp.float32), train=True)
        np.testing.assert_array_equal(half.codes, single.codes, "codes of bfloat16 vectors differ")
        assert half.quantized.dtype == jnp.bfloat16, f"bfloat16 vectors are quantised to {half.quantized.dtype}"
        _assert_close(state, other, "the state is updated in half precision")


def compiled_is_eager(trial: Trial) -> None:
    """`jit` changes neither codes nor state."""
    compiled = trial.apply(trial.state, trial.z, train=True)
    with jax.disable_jit():
        eager = trial.subject.apply(trial.state, trial.z, True, None)
    np.testing.assert_array_equal(compiled[0].codes, eager[0].codes, "codes under jit differ")
    _assert_close(compiled[1], eager[1], "the state under jit differs")


def dtypes_are_the_same_under_x64(trial: Trial) -> None:
    """With `jax_enable_x64`, outputs and state of a layer of kvae keep their dtypes, as `lax.scan` requires."""
    dtypes = [None] * 2
    for is_wide in (False, True) if trial.layer is not None else ():
        with jax.enable_x64(is_wide):
            traced = jax.eval_shape(lambda state, z: trial.subject.apply(state, z, True, None), trial.state, trial.z)
        dtypes[is_wide] = [str(leaf.dtype) for leaf in jax.tree.leaves(traced)]
    assert dtypes[0] == dtypes[1], f"dtypes of outputs and state change from {dtypes[0]} to {dtypes[1]}"


def statistics_of_halves_add_up(trial: Trial) -> None:
    """A layer of kvae learns the same from a batch and from the summed statistics of its halves."""
    layer = trial.layer
    if layer is None:
        return

    @jax.jit
    def learned(state, z):
        quantize = functools.partial(layer.apply, state, method="quantize", rngs={"dropout": jax.random.key(0)})
        halves = [quantize(half, train=True).statistics for half in jnp.split(z, 2)]
        return layer.apply(state, jax.tree.map(jnp.add, *halves), method="update", mutable=["codebook"])[1]

    whole = trial.variables_of(trial.apply(trial.state, trial.z, train=True)[1])
    halves = {**trial.variables, **learned(trial.variables, trial.z)}
    _assert_close(halves, whole, "statistics of halves do not add up")


def any_leading_shape(trial: Trial) -> None:
    """The leading shape of the vectors does not change their codes."""
    out, _ = trial.apply(trial.state, trial.z, train=True)
    flat = _flat_and_padded(trial)[0].codes[: trial.z[..., 0].size]
    np.testing.assert_array_equal(flat.reshape(out.codes.shape), out.codes, "codes of flattened vectors differ")


def far_vectors_saturate(trial: Trial) -> None:
    """Vectors far from all codewords have codes from 0 to K - 1 and finite quantised vectors."""
    size = np.inf if trial.layer is None else trial.layer.codebook_size
    for z in _far_vectors(trial):
        out, _ = trial.apply(trial.state, z)
        codes = np.asarray(out.codes)
        assert codes.min() >= 0, f"the lowest code is {codes.min()}; it must be at least 0"
        assert codes.max() < size, f"a code is {codes.max()}, but K is {size}"
        assert np.all(np.isfinite(out.quantized)), "a quantised vector is not finite"


def _far_vectors(trial: Trial) -> tuple[jax.Array, ...]:
    return 1e4 * trial.z, jnp.full_like(trial.z, 9), jnp.full_like(trial.z, -9)


def codes_give_back_their_vectors(trial: Trial) -> None:
    """`lookup` of the codes returns the quantised vectors, in training and in evaluation, also for outliers."""
    layer = trial.layer
    if layer is None:
        return
    for z in (trial.z, *_far_vectors(trial)):
        for train in (True, False):
            out, _ = trial.apply(trial.state, z, train=train)
            vectors = layer.apply(trial.variables, np.asarray(out.codes), method="lookup")
            _assert_close(vectors, out.quantized, f"lookup does not return the quantised vectors, train={train}")


def lookup_refuses_codes_out_of_range(trial: Trial) -> None:
    """`lookup` raises a ValueError for codes outside 0 to K - 1, except inside a compiled program."""
    layer = trial.layer
    if layer is None:
        return
    for code in (-2, layer.codebook_size, 2**31 - 1):
        codes = np.full(() if layer.n_codebooks is None else (layer.n_codebooks,), code, np.int32)
        try:
            layer.apply(trial.variables, codes, method="lookup")
        except ValueError:
            continue
        raise AssertionError(f"lookup accepts the code {code}, but K is {layer.codebook_size}")


def dropped_codebooks_are_left_out(trial: Trial) -> None:
    """With `dropout`, `lookup` of the codes returns the quantised vectors; counts and perplexity match the codes."""
    layer = trial.layer
    if not getattr(layer, "dropout", 0):
        return
    layer = layer.clone(dropout=1.0)

    @jax.jit
    def trained(key):
        out = layer.apply(trial.variables, trial.z, train=True, method="quantize", rngs={"dropout": key})
        return out, layer.apply(trial.variables, out.codes, method="lookup")

    outs = [trained(jax.random.key(seed)) for seed in range(8)]
    assert any(np.any(out.codes == -1) for out, _ in outs), "no codebook is ever dropped"
    for out, vectors in outs:
        _assert_close(vectors, out.quantized, "lookup does not return the quantised vectors of a dropped codebook")
        codes = np.asarray(out.codes).reshape(-1, layer.n_codebooks).T
        counts = [np.bincount(level[level >= 0], minlength=layer.codebook_size) for level in codes]
        np.testing.assert_array_equal(out.counts, counts, "counts differ from the codes")
        shares = [level[level > 0] / level.sum() for level in counts if level.any()]
        perplexity = np.float32(np.mean([np.exp(-np.sum(share * np.log(share))) for share in shares]))
        _assert_close(out.perplexity, perplexity, "perplexity counts dropped codebooks")


def views_stop_learning(trial: Trial) -> None:
    """An NNX layer does not learn in `nnx.view(layer, use_running_average=True)` or after `eval()`."""
    module = getattr(trial.subject, "module", None)
    if module is None:
        return
    evaluating = nnx.clone(module)
    evaluating.eval()
    for layer in (nnx.view(nnx.clone(module), use_running_average=True), evaluating):
        before = jax.device_get(nnx.to_pure_dict(nnx.state(layer)))
        nnx.jit(lambda layer, z: layer(z).codes)(layer, trial.z)
        _assert_equal(nnx.to_pure_dict(nnx.state(layer)), before, "the layer learns in evaluation")


def restarts_take_vectors_of_the_batch(trial: Trial) -> None:
    """With `restart_below`, codes restart at vectors of the batch, not at means, over micro-batches and devices."""
    layer = trial.layer
    if not getattr(layer, "restart_below", 0):
        return
    layer = layer.clone(restart_below=1e6)  # every code restarts
    z = trial.z.reshape(8, -1, trial.dimension) + 10 * jnp.arange(8)[:, None, None]

    @jax.jit
    def in_parts(state, z):
        parts = jax.lax.map(lambda part: layer.apply(state, part, train=True, method="quantize").statistics, z)
        total = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), parts)
        return layer.apply(state, total, method="update", mutable=["codebook"])[1]["codebook"]

    def on_a_device(state, z):
        mapped = layer.clone(axis_name="data")
        return mapped.apply(state, z, train=True, mutable=["codebook"])[1]["codebook"]

    n_devices = next(n for n in (8, 4, 2, 1) if n <= jax.device_count())
    mesh = Mesh(np.array(jax.devices()[:n_devices]), "data")
    specs = dict(in_specs=(PartitionSpec(), PartitionSpec("data")), out_specs=PartitionSpec())
    on_devices = jax.jit(jax.shard_map(on_a_device, mesh=mesh, **specs))  # raises if devices differ in state
    rows = np.asarray(DISTANCE_METRICS[layer.metric](z)).reshape(-1, 1, trial.dimension)
    for codebook in (in_parts(trial.variables, z), on_devices(trial.variables, z)):
        restarted = np.asarray(codebook["codewords"])[np.asarray(codebook["counts"]) == 1e6]
        assert len(restarted), "no code restarts"
        distance = np.abs(rows - restarted).max(axis=-1).min(axis=0).max()
        assert distance < 1e-5, f"a code restarts at a mean of several vectors, {distance} away from each"


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
        dtypes_are_the_same_under_x64,
        any_leading_shape,
        statistics_of_halves_add_up,
        far_vectors_saturate,
        codes_give_back_their_vectors,
        lookup_refuses_codes_out_of_range,
        dropped_codebooks_are_left_out,
        views_stop_learning,
        restarts_take_vectors_of_the_batch,
    )
}
"""All checks, by name."""


def _numbers(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.number)]


def _assert_equal(one: Any, other: Any, message: str) -> None:
    for a, b in zip(_numbers(one), _numbers(other), strict=True):
        np.testing.assert_array_equal(a, b, message)


def _assert_close(one: Any, other: Any, message: str) -> None:
    for a, b in zip(_numbers(one), _numbers(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=message)
