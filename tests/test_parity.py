"""The quantisers reproduce traces of the authors' released code, step by step (see tests/parity/README.md)."""

import ast
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvae
from kvae.kohonen import CodebookState

TRACES = pathlib.Path(__file__).parent / "parity"
NAMES = {
    "ema": sorted(path.stem for path in TRACES.glob("*.npz") if not path.stem.startswith("gradient")),
    "gradient": sorted(path.stem for path in TRACES.glob("gradient*.npz")),
}


def load_trace(name):
    with np.load(TRACES / f"{name}.npz") as file:
        arrays = dict(file)
    meta = ast.literal_eval(str(arrays.pop("meta")))
    return arrays, meta


def assert_close(actual, expected):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    worst = np.max(np.abs(actual - expected) - 1e-4 * (np.abs(expected) + 1e-3))
    assert worst <= 0, f"off by {worst} more than allowed"


def layer_fields(trace, meta):
    # In the authors' code the first axis varies fastest: its (6, 4) is (4, 6) row by row.
    return dict(
        grid_shape=tuple(int(n) for n in trace["grid_shape"][::-1]),
        neighborhood=meta["neighbourhood"],
        shrink_step=meta["shrink_step"],
        commitment_weight=meta["commitment"],
    )


def test_all_traces_exist():
    assert len(NAMES["ema"]) == 7
    assert len(NAMES["gradient"]) == 2


@pytest.mark.parametrize("name", NAMES["ema"])
def test_kohonen_vq_reproduces_trace(name):
    trace, meta = load_trace(name)
    layer = kvae.KohonenVQ(
        **layer_fields(trace, meta),
        decay=meta["decay"],
        init_count=float(meta["init_count"]),
        update_empty=meta["update_empty"],
    )
    initial = trace["codebook0"]
    counts = np.full(len(initial), meta["init_count"], np.float32)
    variables = {"codebook": CodebookState(initial, initial.copy(), counts, jnp.int32(0))._asdict()}
    weights = np.random.default_rng(7).standard_normal(trace["z"][0].shape).astype(np.float32)

    @jax.jit
    def step(variables, z):
        def total_loss(z):
            out, updated = layer.apply(variables, z, train=True, mutable=["codebook"])
            return out.loss + jnp.mean(out.quantized * weights), (out, updated)

        grad_z, (out, updated) = jax.grad(total_loss, has_aux=True)(z)
        return grad_z, out, updated

    for t, z in enumerate(trace["z"]):
        grad_z, out, variables = step(variables, z)
        np.testing.assert_array_equal(out.codes, trace["codes"][t])
        for actual, expected in [
            (out.quantized, trace["quantized"][t]),
            (out.loss, trace["loss"][t]),
            (out.perplexity, trace["perplexity"][t]),
            (grad_z, trace["grad_z"][t]),
            (variables["codebook"]["codewords"], trace["codebook"][t]),
            (variables["codebook"]["sums"], trace["ema_sum"][t]),
            (variables["codebook"]["counts"], trace["ema_count"][t]),
        ]:
            assert_close(actual, expected)
    assert variables["codebook"]["step"] == len(trace["z"])


@pytest.mark.parametrize("name", NAMES["gradient"])
def test_gradient_vq_reproduces_trace(name):
    trace, meta = load_trace(name)
    layer = kvae.GradientVQ(**layer_fields(trace, meta), pull="codeword", neighbor_weight=1.0)
    variables = {"params": {"codewords": trace["codebook0"]}, "codebook": {"step": jnp.int32(0)}}
    weights = np.random.default_rng(7).standard_normal(trace["z"][0].shape).astype(np.float32)

    @jax.jit
    def step(variables, z):
        def total_loss(params, z):
            out, updated = layer.apply({**variables, "params": params}, z, train=True, mutable=["codebook"])
            return out.loss + jnp.mean(out.quantized * weights), (out, updated)

        gradients, (out, updated) = jax.grad(total_loss, argnums=(0, 1), has_aux=True)(variables["params"], z)
        return *gradients, out, updated

    for t, z in enumerate(trace["z"]):
        grad_params, grad_z, out, updated = step(variables, z)
        np.testing.assert_array_equal(out.codes, trace["codes"][t])
        for actual, expected in [
            (out.quantized, trace["quantized"][t]),
            (out.loss, trace["loss"][t]),
            (out.perplexity, trace["perplexity"][t]),
            (grad_z, trace["grad_z"][t]),
            (grad_params["codewords"], trace["grad_codebook"][t]),
        ]:
            assert_close(actual, expected)
        codewords = variables["params"]["codewords"] - 0.05 * grad_params["codewords"]
        assert_close(codewords, trace["codebook"][t])
        variables = {"params": {"codewords": codewords}, **updated}
    assert variables["codebook"]["step"] == len(trace["z"])
