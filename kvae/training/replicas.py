"""Several seeds in one program: every array of training has a leading replica axis, of length 1 for a single run.

Replicas go in groups, each a tree of arrays [g, ...]; g is how many are trained at once. A program is `vmap`ped over a
group. Of several groups, each takes its turn in one program that is compiled once.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kvae.training import devices
from kvae.training.memory import errors_of_memory

Groups = list
"""Trees of arrays [g, ...], one a group."""


class Replicas:
    """How many replicas there are, and how they lie on the devices.

    Args:
      count: of replicas.
      mesh: as `devices.make_mesh` gives it.
    """

    def __init__(self, count: int, mesh: Mesh):
        self.count, self.mesh = count, mesh
        self.size = devices.replicas_at_once(count)
        self.sharding = devices.state_sharding(mesh)

    def program(
        self, function: Callable, *, shared: Sequence[int] = (), donate: bool = False, run_once: bool = False
    ) -> Callable:
        """`function`, of one replica, compiled for all: from groups to groups.

        Args:
          function: of positional arguments; arrays in, arrays out.
          shared: positions of the arguments that all replicas share; they are no groups.
          donate: whether the result takes over the memory of the first argument.
          run_once: whether it is not worth while to make it fast.
        """
        compiled = self.compiled(function, shared=shared, donate=donate, run_once=run_once)

        def of_groups(*arguments):
            results = []
            for i in range(self.count // self.size):
                with errors_of_memory():
                    results.append(compiled(*(a if n in shared else a[i] for n, a in enumerate(arguments))))
                if self.count > self.size and self.mesh.size > 1 and jax.default_backend() == "cpu":
                    # Collectives of two programs at once can wait for each other there.
                    jax.block_until_ready(results[-1])
            return results

        return of_groups

    def compiled(self, function: Callable, *, shared: Sequence[int] = (), donate: bool = False, run_once: bool = False):
        """`function`, of one replica, as the jitted program of one group."""
        return jax.jit(
            over_axis(function, self.size, shared),
            donate_argnums=0 if donate else None,
            out_shardings=self.sharding,
            compiler_options=devices.run_once_options() if run_once else None,
        )

    def split(self, tree) -> Groups:
        """Groups of a tree of arrays [count, ...]; the arrays themselves where there is one group."""
        if self.count == self.size:
            return [tree]
        starts = range(0, self.count, self.size)
        return [jax.tree.map(lambda leaf, s=start: leaf[s : s + self.size], tree) for start in starts]

    def joined(self, groups: Groups):
        """A tree of arrays [count, ...] on the devices: a copy, where there are several groups."""
        if len(groups) == 1:
            return groups[0]
        with errors_of_memory():
            return _concatenated(self.sharding)(groups)

    def form(self, groups: Groups):
        """Shapes, types and shardings of what `joined` gives, without its memory."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((self.count, *leaf.shape[1:]), leaf.dtype, sharding=self.sharding),
            groups[0],
        )

    def on_host(self, groups: Groups):
        """A tree of NumPy arrays [count, ...]."""
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *jax.device_get(groups))


@functools.cache
def _concatenated(sharding):
    join = lambda groups: jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *groups)  # noqa: E731
    return jax.jit(join, out_shardings=sharding)


def over_axis(function: Callable, size: int, shared: Sequence[int] = ()) -> Callable:
    """`function` for each entry of a leading axis, which the arguments that are not shared have."""
    if size > 1:

        def mapped(*arguments):
            axes = [None if position in shared else 0 for position in range(len(arguments))]
            return jax.vmap(function, in_axes=axes)(*arguments)

        return mapped

    def alone(*arguments):
        own = [a if n in shared else jax.tree.map(lambda leaf: leaf[0], a) for n, a in enumerate(arguments)]
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], function(*own))

    return alone


def one_of(tree, replica: int):
    """The part of a tree of arrays [count, ...] that belongs to one replica."""
    return jax.tree.map(lambda leaf: leaf[replica], tree)


def in_a_row(values: Sequence):
    """A value of each replica as a row holds it: a number, or a list in seed order where there are several."""
    return values[0] if len(values) == 1 else list(values)
