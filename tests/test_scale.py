"""Memory and traffic at large sizes, mostly read from the compiled program."""

import ctypes
import functools
import itertools
import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvae
from compiled import collectives
from kvae import kohonen, models
from kvae.benchmark import __main__ as benchmark
from kvae.core import allocator, program
from kvae.data import pipeline
from kvae.training import loop
from kvae.training import train as story
from kvae.training.parallel import devices
from kvae.training.parallel.devices import Replicas


def quantizer_step(layer, variables, z):
    out, updated = layer.apply(variables, z, train=True, mutable=["codebook"])
    return out.quantized, out.codes, out.loss, updated


def prepare(config, count, batch_size):
    """Returns the first state, the jitted step and a batch on several devices, with a replica axis of 1."""
    model = models.build(config["model"], mean=(120.0,) * 3, std=(60.0,) * 3)
    replicas = Replicas(1, devices.make_mesh(1, jax.devices()[:count]))
    init, step = story.init_and_step(config, model, {"image": np.zeros((32, 32, 3), np.uint8)}, replicas.mesh)
    blocks = np.random.default_rng(0).integers(0, 256, (1, batch_size, 2, 2, 3), dtype=np.uint8)
    batch = {"image": blocks.repeat(16, axis=2).repeat(16, axis=3)}
    (state,) = replicas.program(init, run_once=True)([np.zeros(1, np.int32)])
    ((batch,),) = loop.on_devices(iter([batch]), replicas)
    return state, replicas.compiled(step, donate=True), batch


def test_the_quantiser_never_holds_an_n_by_k_array():
    positions, size, dimension = 524_288, 512, 64
    layer = kvae.KohonenVQ((16, 32))
    variables = jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, dimension)))
    z = jax.ShapeDtypeStruct((positions, dimension), jnp.float32)
    compiled = jax.jit(functools.partial(quantizer_step, layer)).lower(variables, z).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < positions * size * 4 / 2


@pytest.mark.parametrize("neighborhood", ["hard", "gaussian"])
def test_a_map_of_65536_codes_trains(neighborhood):
    layer = kvae.KohonenVQ((256, 256), neighborhood=neighborhood)
    z = jax.random.normal(jax.random.key(1), (64, 8))
    variables = layer.init(jax.random.key(0), z)
    step = jax.jit(functools.partial(quantizer_step, layer))
    memory = step.lower(variables, z).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2**30 / 4  # one K x K array has 16 GiB
    _, codes, _, updated = step(variables, z)
    before, after = variables["codebook"]["codewords"], updated["codebook"]["codewords"]
    closer = jnp.linalg.norm(z - after[codes], axis=-1) < jnp.linalg.norm(z - before[codes], axis=-1)
    assert closer.mean() > 0.9
    assert updated["codebook"]["step"] == 1


@pytest.mark.parametrize(("batch_size", "chunks"), [(8, 1), (16, 1), (1_024, 4), (2_040, 8)])
def test_devices_exchange_only_codebook_sums_gradients_and_scalars(make_config, monkeypatch, batch_size, chunks):
    monkeypatch.setitem(kohonen.SCORES_PER_CHUNK, "cpu", 2**19)
    config = make_config(**{"model.quantizer.grid_shape": (4, 8)})
    assert kohonen._number_of_chunks(batch_size * 64, 32) == chunks
    state, step, images = prepare(config, 8, batch_size)
    operations = collectives(step.lower(state, images).compile().as_text())
    assert {name for name, _ in operations} == {"all-reduce"}
    size, dimension = 32, config["model"]["embedding_dim"]
    allowed = {1, size, size * dimension} | {leaf.size for leaf in jax.tree.leaves(state.params)}
    assert set(itertools.chain(*(sizes for _, sizes in operations))) <= allowed
    traffic = sum(sum(sizes) for _, sizes in operations)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert traffic <= parameters + 2 * size * (dimension + 1) + 64


@pytest.mark.parametrize(("positions", "size"), [(64, 2**17), (8 * 193, 2**13)])
def test_a_sharded_lookup_needs_no_communication(positions, size):
    mesh = devices.make_mesh(1, jax.devices())
    z = jax.ShapeDtypeStruct((positions, 4), jnp.float32, sharding=devices.shared_batch_sharding(mesh))
    codewords = jax.ShapeDtypeStruct((size, 4), jnp.float32, sharding=devices.state_sharding(mesh))
    assert collectives(jax.jit(kohonen.nearest_code).lower(z, codewords).compile().as_text()) == []


def test_nothing_enters_or_leaves_the_device_between_logs(make_config):
    state, step, images = prepare(make_config(), 8, 16)
    state = step(state, images)
    with jax.transfer_guard("disallow"):
        for _ in range(3):
            state = step(state, images)
    assert state.step == 4


def test_a_step_reuses_the_memory_of_the_state(make_config):
    state, step, images = prepare(make_config(), 8, 16)
    after = step(state, images)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))
    memory = step.lower(after, images).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= sum(leaf.nbytes for leaf in jax.tree.leaves(after))


def test_bfloat16_follows_float32(make_config):
    losses = {}
    for dtype in ("float32", "bfloat16"):
        state, step, images = prepare(make_config(**{"model.dtype": dtype, "optimizer.learning_rate": 5e-3}), 1, 16)
        before, losses[dtype] = 0.0, []
        for _ in range(32):
            state = step(state, images)
            total = state.metric_sums.metrics["reconstruction_loss"].item()
            losses[dtype].append(total - before)
            before = total
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((state.params, state.optimizer[1][0].mu)))
        assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves(state.collections))
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.03)
    assert losses["bfloat16"][-1] < 0.9 * losses["bfloat16"][0]


def test_batches_are_prepared_while_a_step_runs():
    made = []
    source = (made.append(i) or i for i in itertools.count())
    with pipeline.prefetch(source, 3) as batches:
        for step in range(5):
            assert next(batches) == step
            deadline = time.monotonic() + 10
            while len(made) < step + 4 and time.monotonic() < deadline:
                time.sleep(0.001)
            # This step's batch is taken, three more are ready, and no others have been made.
            assert len(made) == step + 4


def test_benchmark_table(tmp_path, capsys, monkeypatch):
    file = tmp_path / "table.json"
    arguments = ["--config=configs/photos_vqvae.py:smoke", "--random-images=32", "--seconds=0.1"]
    arguments += ["--config.optimizer.name=adam", f"--json={file}"]
    monkeypatch.chdir(pathlib.Path(__file__).parents[1])
    # On a GPU only compiled programs have a cost analysis.
    costs, cost_analysis = [], jax.stages.Lowered.cost_analysis
    monkeypatch.setattr(jax.stages.Lowered, "cost_analysis", lambda lowered: costs.append(cost_analysis(lowered)))
    assert program.run(benchmark.main, [*arguments, "--compare=quantizer.neighborhood=none"]) == 0
    output = capsys.readouterr()
    assert "ratio of medians, photos_vqvae_smoke / quantizer.neighborhood=none" in output.out
    assert "compiling quantizer.neighborhood=none" in output.err
    rows = json.loads(file.read_text())["rows"]
    for row in rows.values():
        assert 0 < row["quantiser_share"] < 1
        np.testing.assert_allclose(row["model_gigaflop"], costs.pop(0)["flops"] / 1e9, rtol=0.4)  # fused
        assert row["temporary_mebibytes"] <= row["peak_mebibytes"]
    assert program.run(benchmark.main, [*arguments, "--compare=quantizer.neighbourhood=none"]) == 2
    assert "did you mean 'neighborhood'?" in capsys.readouterr().err
    (tmp_path / "file").touch()
    monkeypatch.setattr("kvae.benchmark.step_times.time_configs", lambda *_: rows)
    assert program.run(benchmark.main, [*arguments[:-1], f"--json={tmp_path}/file/table.json"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"kvae: --json={tmp_path}/file/table.json cannot be")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("optimizer.name=adam", "torch is not installed: pip install -e '.[bench]'"),
        ("optimizer.name=muon", "optimizer.name is 'muon'; --torch compares only 'adam': set --config.optimizer.name"),
        ("model.quantizer.neighborhood=gaussian", "is 'gaussian'; --torch compares only 'hard' or 'none'"),
    ],
)
def test_torch_comparison_refuses_what_it_lacks(field, message, capsys, monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parents[1])
    monkeypatch.setitem(sys.modules, "torch", None)
    arguments = ["--config=configs/cifar10_vqvae.py:smoke", f"--config.{field}", "--torch"]
    assert program.run(benchmark.main, arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def faults_of_reused_buffer(setup):
    """Returns the page faults of a fresh process that allocates and frees 80 MB ten times after `setup`."""
    code = f"""
import resource
import numpy as np
from kvae.core import allocator
{setup}
np.ones(10_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_programs_do_not_fault_buffers_in_again():
    assert faults_of_reused_buffer("allocator.keep_freed_memory()") < 1_000 < faults_of_reused_buffer("")


@pytest.mark.parametrize("libc", [object(), OSError("no C library")])
def test_other_c_libraries_are_left_alone(libc, monkeypatch):
    opened = []

    def library(name):
        opened.append(name)
        if isinstance(libc, Exception):
            raise libc
        return libc

    monkeypatch.setattr(ctypes, "CDLL", library)
    allocator.keep_freed_memory()  # object() has no mallopt
    assert len(opened) == 1
