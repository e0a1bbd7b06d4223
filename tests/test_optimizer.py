"""Learning rates and optimisers, by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kvae.training.optimizer import SCHEDULES, make_optimizer
from kvae.training.parallel.devices import Replicas, make_mesh

RATE = 0.1


def first_update(params, gradients, **fields):
    optimizer = make_optimizer(10, learning_rate=RATE, **fields)
    return optimizer.update(gradients, optimizer.init(params), params)[0]


def some(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_a_cooldown_holds_the_rate_and_then_takes_it_down_over_the_last_fifth():
    rates = [SCHEDULES["cooldown"](2.0, 100)(step) for step in (0, 50, 80, 90, 100)]
    np.testing.assert_allclose(rates, [2.0, 2.0, 2.0, (2.0 + 0.02) / 2, 0.02], rtol=1e-6)
    assert SCHEDULES["cooldown"](2.0, 1)(0) == 2.0


def test_the_learning_rate_rises_at_the_steps_of_the_warmup():
    optimizer = make_optimizer(10, warmup=((2, 1e-4), (4, 5e-4)))
    state = optimizer.init({"w": jnp.zeros(())})
    taken = []
    for _ in range(6):
        updates, state = optimizer.update({"w": jnp.ones(())}, state)
        taken.append(-float(updates["w"]))
    np.testing.assert_allclose(taken, [1e-4, 1e-4, 5e-4, 5e-4, 1e-3, 1e-3], rtol=1e-4)


@pytest.mark.parametrize("shape", [(3, 3, 8, 24), (1, 1, 32, 8), (24, 16)])
def test_muon_turns_a_kernel_by_the_nearest_orthogonal_matrix(shape):
    """U V^T of the gradient's U S V^T, at the root mean square of Adam's updates. The iteration stops near it."""
    gradient = some(*shape)
    update = first_update({"kernel": some(*shape, seed=1)}, {"kernel": gradient}, name="muon")["kernel"]
    u, _, vt = np.linalg.svd(gradient.reshape(-1, shape[-1]), full_matrices=False)
    found, nearest = np.asarray(update).reshape(-1, shape[-1]), u @ vt
    assert np.sum(-found * nearest) / np.linalg.norm(found) / np.linalg.norm(nearest) > 0.97
    np.testing.assert_allclose(np.sqrt(np.mean(found**2)), 0.2 * RATE, rtol=0.2)


def test_muon_leaves_to_adam_what_is_no_matrix():
    params = {
        "Conv_0": {"kernel": some(2, 2, 3, 4), "bias": some(4)},
        "codebook": {"codewords": some(8, 3)},
        "query": {"kernel": some(6, 2, 3)},  # of attention: from 6 numbers to 2 heads of 3
    }
    gradients = jax.tree.map(lambda leaf: leaf + 1, params)
    found = first_update(params, gradients, name="muon")
    adam = optax.nadam(RATE)
    expected, _ = adam.update(gradients, adam.init(params), params)
    for module, name in (("Conv_0", "bias"), ("codebook", "codewords"), ("query", "kernel")):
        np.testing.assert_allclose(found[module][name], expected[module][name], rtol=1e-5)
    assert not np.allclose(found["Conv_0"]["kernel"], expected["Conv_0"]["kernel"], rtol=0.1)


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_weight_decay_draws_every_parameter_to_zero(name):
    params = {"kernel": some(4, 4), "bias": some(4)}
    gradients = jax.tree.map(jnp.zeros_like, params)
    found = first_update(params, gradients, name=name, weight_decay=0.5)
    jax.tree.map(lambda update, leaf: np.testing.assert_allclose(update, -RATE * 0.5 * leaf, atol=1e-6), found, params)


def test_muon_finds_the_same_update_each_time():
    """In jax 0.10 on a CPU, XLA's own matrix products disturb one another when several run at once."""
    shapes = [(3, 3, 128, 128), (4, 4, 64, 128), (3, 3, 128, 32), (1, 1, 32, 128), (3, 3, 128, 32), (1, 1, 128, 64)]
    params = {str(number): {"kernel": some(*shape, seed=number)} for number, shape in enumerate(shapes)}
    optimizer = make_optimizer(10, name="muon")
    update = Replicas(1, make_mesh(1)).compiled(lambda grads, state: optimizer.update(grads, state, grads)[0])
    arguments = jax.tree.map(lambda leaf: leaf[None], (params, optimizer.init(params)))
    first = update(*arguments)
    for _ in range(4):
        jax.tree.map(np.testing.assert_array_equal, update(*arguments), first)
