"""Two processes of two devices each, over loopback with real collectives, are one process of four devices."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from kvae import main
from kvae.core import program
from kvae.core.errors import InputError
from kvae.training.parallel import cluster
from kvae.training.workdir.journal import read_metrics
from runs import final_state, rows, run

ROOT = pathlib.Path(__file__).parents[1]
SECONDS = 80


PROGRAM = (
    "import sys; from kvae import main; from kvae.core import program; from kvae.training.parallel import peers;"
    "peers.SILENT_SECONDS, peers.SECONDS_OF_DISKS, peers.HEARTBEAT_SECONDS = 10, 3, 1;"
    "sys.exit(program.run(main.main, sys.argv[1:]))"
)


def start_two(arguments, of_second=()):
    """Starts the training program as two processes; stderr of each can be read. The second has arguments of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {
        **os.environ, "JAX_NUM_CPU_DEVICES": "2", "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments, *(of_second if i else ())],
            cwd=ROOT, env={**environment, "JAX_PROCESS_ID": str(i)}, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip


def finish(processes):
    """What each said on stderr, and its exit status."""
    try:
        said = [process.communicate(timeout=SECONDS)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return said, [process.returncode for process in processes]


def wait_for_row(workdir, step, processes):
    deadline = time.monotonic() + SECONDS
    while not any(row["step"] >= step for row in read_metrics(workdir)):
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.05)


@pytest.fixture(scope="module")
def arguments(data_dir):
    return [
        f"--config={ROOT}/configs/photos_vqvae.py:smoke",
        f"--config.dataset.data_dir={data_dir}",
        "--config.optimizer.learning_rate=1e-4",
        "--config.optimizer.schedule=constant",  # others depend on the number of steps
        "--config.model.quantizer.decay=0.99",  # sums over processes round otherwise, and a short memory shows it
        "--config.evaluate_every_steps=10000",
    ]


@pytest.fixture(scope="module")
def story(arguments, tmp_path_factory):
    """A run of two processes, of which one gets SIGTERM, and which then goes on to its last step."""
    workdir = str(tmp_path_factory.mktemp("two") / "run")
    arguments = [*arguments, f"--workdir={workdir}"]
    processes = start_two([*arguments, "--config.steps=100000"])
    wait_for_row(workdir, 2, processes)
    processes[1].send_signal(signal.SIGTERM)
    stopped = finish(processes)
    reached = int(final_state(workdir)["step"][0])
    steps = (reached // 4 + 2) * 4
    ended = finish(start_two([*arguments, f"--config.steps={steps}"]))
    return {"workdir": workdir, "stopped": stopped, "reached": reached, "ended": ended, "steps": steps}


def test_sigterm_to_one_saves_everywhere_and_both_leave_with_a_message(story):
    said, statuses = story["stopped"]
    assert statuses == [program.STOPPED] * 2, said
    for text in said:
        assert f"stopped at step {story['reached']}; run the same command again to continue" in text


def test_two_processes_train_to_what_one_process_does(story, arguments, tmp_path):
    said, statuses = story["ended"]
    assert statuses == [0, 0], said
    config, _ = main.parse([*arguments, f"--config.steps={story['steps']}"])
    run(config, tmp_path / "one", devices=4)
    one, two = final_state(str(tmp_path / "one")), final_state(story["workdir"])
    assert one.keys() == two.keys()
    for part in ("params", "collections"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), one[part], two[part])
    found = rows(tmp_path / "one"), rows(story["workdir"])
    assert (
        [row["step"] for row in found[0]] == [row["step"] for row in found[1]] == list(range(2, story["steps"] + 1, 2))
    )
    for alone, together in zip(*found, strict=True):
        assert alone.keys() == together.keys()
        for name in alone:
            np.testing.assert_allclose(
                together[name], alone[name], rtol=1e-3, atol=1e-4, err_msg=f"{name}, {alone['step']}"
            )


def test_only_the_first_process_writes_and_speaks(story):
    files = {path.name.partition(".tfevents")[0] for path in pathlib.Path(story["workdir"]).iterdir()}
    assert files == {"config.json", "log.txt", "metrics.jsonl", "events.out", "figures", "checkpoints"}
    log = (pathlib.Path(story["workdir"]) / "log.txt").read_text()
    assert log.count(f"stopped at step {story['reached']}") == 1
    (first, second), _ = story["ended"]
    assert f"step {story['steps']}/{story['steps']}" in first
    assert "loss" not in second


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("--config.seed=1", "the processes differ: config.seed is 0 on process 0 and 1 on process 1"),
        ("--config.steps=8", "the processes differ: config.steps is 100000 on process 0 and 8 on process 1"),
    ],
)
def test_processes_that_were_started_otherwise_say_in_what_they_differ(arguments, tmp_path, field, message):
    started = start_two([*arguments, f"--workdir={tmp_path / 'run'}", "--config.steps=100000"], [field])
    said, statuses = finish(started)
    assert statuses == [2, 2], said
    assert all(message in text and text.count("kvae: ") == 1 for text in said)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_folder_that_is_not_shared_is_one_line(arguments, tmp_path):
    started = start_two([*arguments, f"--workdir={tmp_path / 'run'}"], [f"--workdir={tmp_path / 'other'}"])
    said, statuses = finish(started)
    assert statuses == [program.STOPPED, 2], said
    assert f"process 1 does not see in {tmp_path / 'other'} what process 0 writes there" in said[1]


@pytest.mark.parametrize("killed", [0, 1])
def test_when_one_is_killed_the_other_ends_and_can_be_started_again(arguments, tmp_path, killed):
    started = start_two([*arguments, f"--workdir={tmp_path / 'run'}", "--config.steps=100000"])
    wait_for_row(tmp_path / "run", 2, started)
    started[killed].kill()
    begun = time.monotonic()
    said, statuses = finish(started)
    assert time.monotonic() - begun < 60
    assert statuses[1 - killed] == program.STOPPED, said
    assert f"kvae: process {killed} has gone" in said[1 - killed].splitlines()[-1]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, None),  # in the batch script itself, outside srun
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "4"}, {}),
        (
            {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "3"},
            {"local_device_ids": [0, 1, 2]},
        ),
        (
            {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "a100:2"},
            {"local_device_ids": [0, 1]},
        ),
        ({"SLURM_STEP_NUM_TASKS": ""}, None),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, {}),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            {"coordinator_address": "a:1", "num_processes": 2, "process_id": 0},
        ),
    ],
)
def test_a_cluster_is_joined_only_where_there_is_one(environment, expected, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TPU_", "JAX_COORD", "JAX_NUM_PROC", "JAX_PROCESS")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: joined.append(arguments))
    with cluster.joined_cluster() as process_index:
        assert process_index == 0
    assert joined == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (("host:1234", "two", None), "JAX_NUM_PROCESSES=two, JAX_PROCESS_ID=None; a cluster needs all three"),
        (("host", "2", "0"), "JAX_COORDINATOR_ADDRESS=host, "),
        (("host:1", "2", "2"), "JAX_PROCESS_ID=2; a cluster"),
        (("host:1", "0", "0"), "JAX_NUM_PROCESSES=0"),
    ],
)
def test_half_a_cluster_is_an_error(environment, message, monkeypatch):
    for name, value in zip(("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"), environment, strict=True):
        if value is not None:
            monkeypatch.setenv(f"JAX_{name}", value)
    with pytest.raises(InputError, match=message), cluster.joined_cluster():
        pass


def test_a_variable_of_slurm_that_is_no_number_is_named(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "many")
    with pytest.raises(InputError, match="SLURM_STEP_NUM_TASKS=many; it must be a number"), cluster.joined_cluster():
        pass
