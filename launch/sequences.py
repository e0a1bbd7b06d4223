"""A codebook of 16 codes for sequences, as latent actions and motions have: does it stay alive?

    python launch/sequences.py [--seeds=5] [--steps=600]

Each of scikit-learn's handwritten digits is a sequence of its eight rows, float [b, 8, 8]. A small network turns every
row, in its context, into one of 16 codes, and back. Printed for EMA-VQ and for a map of 4 x 4 codes, over seeds: the
squared error of held-out sequences, the codes in use there, and their perplexity.
"""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import kvae
from kvae import measures
from kvae.core import program
from kvae.core.fields import Count


def in_context(x: jax.Array) -> jax.Array:
    """Each step of [b, t, d] beside the one before and the one after: [b, t, 3 d]."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
    return jnp.concatenate([padded[:, :-2], x, padded[:, 2:]], axis=-1)


class Sequences(nn.Module):
    """Sequences [b, t, d] -> codes [b, t] -> sequences."""

    neighborhood: str

    @nn.compact
    def __call__(self, x, train=False):
        z = nn.Dense(8)(nn.gelu(nn.Dense(128)(in_context(x))))
        out = kvae.KohonenVQ((4, 4), self.neighborhood)(z, train=train)
        return nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(128)(in_context(out.quantized)))), out


def train(neighborhood: str, seed: jax.Array, sequences: jax.Array, held_out: jax.Array, steps: int):
    """Squared error, codes used and perplexity of held-out sequences, after training with one seed."""
    model, optimizer = Sequences(neighborhood), optax.adam(2e-3)
    key = jax.random.key(seed)
    variables = dict(model.init(key, sequences[:1]))
    state = variables["params"], variables["codebook"], optimizer.init(variables["params"])

    def step(t, state):
        params, codebook, moments = state
        rows = jax.random.randint(jax.random.fold_in(key, t), (128,), 0, len(sequences))

        def loss(params):
            variables = {"params": params, "codebook": codebook}
            (y, out), updated = model.apply(variables, sequences[rows], train=True, mutable=["codebook"])
            return jnp.mean((y - sequences[rows]) ** 2) + out.loss, updated["codebook"]

        gradients, codebook = jax.grad(loss, has_aux=True)(params)
        updates, moments = optimizer.update(gradients, moments)
        return optax.apply_updates(params, updates), codebook, moments

    params, codebook, _ = jax.lax.fori_loop(0, steps, step, state)
    y, out = model.apply({"params": params, "codebook": codebook}, held_out)
    counts = jnp.zeros(16).at[out.codes.ravel()].add(1)
    return jnp.mean((y - held_out) ** 2), measures.codes_used(counts), measures.perplexity(counts)


def main(argv: list[str]) -> int:
    """Prints a line for each method; returns the exit status."""
    parser = program.Parser("python launch/sequences.py", __doc__)
    parser.add_argument("--seeds", type=program.number(Count), default=5, help="how many seeds (%(default)s)")
    parser.add_argument("--steps", type=program.number(Count), default=600, help="of training (%(default)s)")
    options = parser.parse_args(argv)
    rows = load_digits().images.astype(np.float32) / 16
    sequences, held_out = map(jnp.asarray, train_test_split(rows, test_size=0.2, random_state=0))
    for label, neighborhood in (("EMA-VQ", "none"), ("map, 4 x 4", "hard")):
        run = jax.jit(jax.vmap(lambda seed, name=neighborhood: train(name, seed, sequences, held_out, options.steps)))
        found = [np.asarray(values, np.float64) for values in run(jnp.arange(options.seeds))]
        error, used, perplexity = (f"{v.mean():.3g} ± {v.std(ddof=1) if len(v) > 1 else 0:.2g}" for v in found)
        print(f"{label:12} error {error:20} codes used {used:12} of 16, perplexity {perplexity}")
    return 0


if __name__ == "__main__":
    sys.exit(program.run(main, sys.argv[1:]))
