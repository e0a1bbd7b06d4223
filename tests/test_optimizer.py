"""Learning-rate schedules and optimisers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kvae.core.errors import InputError
from kvae.training.optimizer import SCHEDULES, make_optimizer
from kvae.training.parallel.devices import Replicas, make_mesh

RATE = 0.1


def first_update(params, gradients, **fields):
    optimizer = make_optimizer(10, learning_rate=RATE, **fields)
    return optimizer.update(gradients, optimizer.init(params), params)[0]


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_cooldown_falls_over_the_last_fifth():
    rates = [SCHEDULES["cooldown"](2.0, 100)(step) for step in (0, 50, 80, 90, 100)]
    np.testing.assert_allclose(rates, [2.0, 2.0, 2.0, (2.0 + 0.02) / 2, 0.02], rtol=1e-6)
    assert SCHEDULES["cooldown"](2.0, 1)(0) == 2.0


def test_warmup_changes_the_rate_at_its_steps():
    optimizer = make_optimizer(10, warmup=((2, 1e-4), (4, 5e-4)))
    state = optimizer.init({"w": jnp.zeros(())})
    rates = []
    for _ in range(6):
        updates, state = optimizer.update({"w": jnp.ones(())}, state)
        rates.append(-float(updates["w"]))
    np.testing.assert_allclose(rates, [1e-4, 1e-4, 5e-4, 5e-4, 1e-3, 1e-3], rtol=1e-4)


@pytest.mark.parametrize("shape", [(3, 3, 8, 24), (1, 1, 32, 8), (24, 16)])
def test_muon_updates_by_the_nearest_orthogonal_matrix(shape):
    """For a gradient U S V^T this is U V^T, here with the root mean square of Adam's updates.

    Newton-Schulz iterations only approximate it.
    """
    gradient = normal(*shape)
    update = first_update({"kernel": normal(*shape, seed=1)}, {"kernel": gradient}, name="muon")["kernel"]
    u, _, vt = np.linalg.svd(gradient.reshape(-1, shape[-1]), full_matrices=False)
    update, nearest = np.asarray(update).reshape(-1, shape[-1]), u @ vt
    assert np.sum(-update * nearest) / np.linalg.norm(update) / np.linalg.norm(nearest) > 0.97
    np.testing.assert_allclose(np.sqrt(np.mean(update**2)), 0.2 * RATE, rtol=0.2)


def test_muon_leaves_other_parameters_to_adam():
    params = {
        "Conv_0": {"kernel": normal(2, 2, 3, 4), "bias": normal(4)},
        "codebook": {"codewords": normal(8, 3)},
        "query": {"kernel": normal(6, 2, 3)},  # of attention: from 6 features to 2 heads of 3
    }
    gradients = jax.tree.map(lambda leaf: leaf + 1, params)
    updates = first_update(params, gradients, name="muon")
    adam = optax.nadam(RATE)
    expected, _ = adam.update(gradients, adam.init(params), params)
    for module, name in (("Conv_0", "bias"), ("codebook", "codewords"), ("query", "kernel")):
        np.testing.assert_allclose(updates[module][name], expected[module][name], rtol=1e-5)
    assert not np.allclose(updates["Conv_0"]["kernel"], expected["Conv_0"]["kernel"], rtol=0.1)


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_weight_decay_shrinks_every_parameter(name):
    params = {"kernel": normal(4, 4), "bias": normal(4)}
    gradients = jax.tree.map(jnp.zeros_like, params)
    updates = first_update(params, gradients, name=name, weight_decay=0.5)
    jax.tree.map(
        lambda update, leaf: np.testing.assert_allclose(update, -RATE * 0.5 * leaf, atol=1e-6), updates, params
    )


def test_muon_is_deterministic():
    """In jax 0.10 on a CPU, concurrent matrix products of XLA disturb one another."""
    shapes = [(3, 3, 128, 128), (4, 4, 64, 128), (3, 3, 128, 32), (1, 1, 32, 128), (3, 3, 128, 32), (1, 1, 128, 64)]
    params = {str(number): {"kernel": normal(*shape, seed=number)} for number, shape in enumerate(shapes)}
    optimizer = make_optimizer(10, name="muon")
    update = Replicas(1, make_mesh(1)).compiled(lambda grads, state: optimizer.update(grads, state, grads)[0])
    arguments = jax.tree.map(lambda leaf: leaf[None], (params, optimizer.init(params)))
    first = update(*arguments)
    for _ in range(4):
        jax.tree.map(np.testing.assert_array_equal, update(*arguments), first)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adm"}, "optimizer.name is 'adm'; did you mean 'adam'"),
        ({"name": "lion"}, "optimizer.name is 'lion'; it must be one of adam, muon"),
        ({"schedule": "cosin"}, "optimizer.schedule is 'cosin'; did you mean 'cosine'"),
        ({"name": None}, "optimizer.name is None; it must be one of"),
    ],
)
def test_unknown_names_are_refused_in_one_line(fields, message):
    with pytest.raises(InputError, match=message):
        make_optimizer(10, **fields)
