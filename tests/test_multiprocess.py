"""Two processes of two devices each, over loopback with real collectives, are one process of four devices."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest

from kvae import main
from kvae.core import program
from kvae.core.errors import InputError
from kvae.training.parallel import cluster, peers
from kvae.training.workdir.journal import read_metrics
from runs import TINY_ARGUMENTS, final_state, rows, run

ROOT = pathlib.Path(__file__).parents[1]
SECONDS = 120

PROGRAM = """
import sys
from kvae import main
from kvae.core import program
from kvae.training.parallel import cluster
from kvae.training.workdir import lock

cluster.HEARTBEAT_TIMEOUT_SECONDS, cluster.GOODBYE_SECONDS = 5, 5
lock.STALE_SECONDS, lock.HEARTBEAT_SECONDS = 3, 0.5
sys.exit(program.run(main.main, sys.argv[1:]))
"""


def start_two(arguments, of_second=()):
    """Starts the training program as two processes with stderr piped; the second one has additional arguments."""
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
    """Waits for the processes; returns the stderr and the exit status of each."""
    try:
        stderr = [process.communicate(timeout=SECONDS)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return stderr, [process.returncode for process in processes]


def wait_for_row_after(workdir, step, processes):
    deadline = time.monotonic() + SECONDS
    while not any(row["step"] > step for row in read_metrics(workdir)):
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
        *TINY_ARGUMENTS,
        "--config.optimizer.learning_rate=1e-4",
        "--config.model.quantizer.decay=0.99",  # sums over processes round differently, and a short memory shows it
        "--config.evaluate_every_steps=10000",
    ]


@pytest.fixture(scope="module")
def story(arguments, tmp_path_factory):
    """A run of two processes: each is killed once, then one gets SIGTERM, then the run goes to its last step."""
    workdir = str(tmp_path_factory.mktemp("two") / "run")
    arguments, killed, step = [*arguments, f"--workdir={workdir}"], [], 0
    for victim in range(2):
        processes = start_two([*arguments, "--config.steps=100000"])
        wait_for_row_after(workdir, step, processes)
        processes[victim].kill()
        started = time.monotonic()
        killed.append((*finish(processes), time.monotonic() - started))
        step = read_metrics(workdir)[-1]["step"]
    processes = start_two([*arguments, "--config.steps=100000"])
    wait_for_row_after(workdir, step, processes)
    processes[1].send_signal(signal.SIGTERM)
    stopped = finish(processes)
    reached = int(final_state(workdir)["step"][0])
    steps = (reached // 4 + 2) * 4
    ended = finish(start_two([*arguments, f"--config.steps={steps}"]))
    return {
        "workdir": workdir, "killed": killed, "stopped": stopped, "reached": reached, "ended": ended, "steps": steps
    }  # fmt: skip


@pytest.mark.parametrize("victim", [0, 1])
def test_death_of_one_process_ends_the_other(story, victim):
    stderr, statuses, seconds = story["killed"][victim]
    assert statuses[1 - victim] == -signal.SIGABRT, stderr
    # Either the coordination service ends the process, or a device of its own that has gone on to the next collective
    # does: Gloo then sees sizes that differ, and ends the process first.
    last_words = ("This most likely indicates that another task died", "gloo::EnforceNotMet")
    assert any(words in stderr[1 - victim] for words in last_words), stderr
    assert seconds < 60


def test_sigterm_to_one_process_saves_and_stops_both(story):
    stderr, statuses = story["stopped"]
    assert statuses == [program.STOPPED] * 2, stderr
    for text in stderr:
        assert f"stopped at step {story['reached']}; run the same command again to resume" in text


def test_two_processes_train_like_one_process(story, arguments, tmp_path):
    stderr, statuses = story["ended"]
    assert statuses == [0, 0], stderr
    config, _ = main.parse([*arguments, f"--config.steps={story['steps']}"])
    run(config, tmp_path / "one", devices=4)
    one, two = final_state(str(tmp_path / "one")), final_state(story["workdir"])
    assert one.keys() == two.keys()
    for part in ("params", "collections"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), one[part], two[part])
    rows_of_one, rows_of_two = rows(tmp_path / "one"), rows(story["workdir"])
    steps = list(range(2, story["steps"] + 1, 2))
    assert [row["step"] for row in rows_of_one] == [row["step"] for row in rows_of_two] == steps
    for alone, together in zip(rows_of_one, rows_of_two, strict=True):
        assert alone.keys() == together.keys()
        for name in alone:
            np.testing.assert_allclose(
                together[name], alone[name], rtol=1e-3, atol=1e-4, err_msg=f"{name}, {alone['step']}"
            )


def test_only_the_first_process_writes_and_logs(story):
    files = {path.name.partition(".tfevents")[0] for path in pathlib.Path(story["workdir"]).iterdir()}
    assert files == {"config.json", "log.txt", "metrics.jsonl", "events.out", "figures", "checkpoints"}
    log = (pathlib.Path(story["workdir"]) / "log.txt").read_text()
    assert log.count(f"stopped at step {story['reached']}") == 1
    (first, second), _ = story["ended"]
    assert f"step {story['steps']}/{story['steps']}" in first
    assert "loss" not in second


def test_processes_with_different_configs_both_say_so(arguments, tmp_path):
    started = start_two([*arguments, f"--workdir={tmp_path / 'run'}", "--config.steps=8"], ["--config.seed=1"])
    stderr, statuses = finish(started)
    assert statuses == [program.MISTAKE] * 2, stderr
    message = "the processes differ: config.seed is 0 on process 0 and 1 on process 1"
    assert all(message in text and text.count("kvae: ") == 1 for text in stderr)
    assert not (tmp_path / "run" / "config.json").exists()


class Store(dict):
    """The key-value store of JAX's coordination service, in one process."""

    key_value_set = dict.__setitem__

    def blocking_key_value_get(self, key, milliseconds):
        if key not in self:
            raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")
        return self[key]


@pytest.fixture
def store(monkeypatch):
    """Makes this process the second of two; the first one's values can be put into the store."""
    store = Store()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(peers, "global_state", types.SimpleNamespace(client=store))
    return store


def test_agree_compares_the_facts_of_all_processes(store):
    store["kvae-config/0"] = json.dumps({"seed": 0})
    peers.agree("config", lambda: {"seed": 0})
    with pytest.raises(InputError, match="the processes differ: seed is 0 on process 0 and None on process 1"):
        peers.agree("config", dict)


def test_agree_gives_up_on_a_silent_process(store, monkeypatch, caplog):
    monkeypatch.setattr(peers, "LONGEST_PREPARATION_SECONDS", 0.01)
    with pytest.raises(InputError, match="process 0 has not reported its data set for a day"):
        peers.agree("data set", dict)
    assert "waiting for process 0, which has not reported its data set yet" in caplog.text


def test_workdir_must_be_shared_by_all_processes(store, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "SHARED_DISK_SECONDS", 0.01)
    (tmp_path / "lock").write_text("process 7")
    store["kvae-lock"] = "process 7"
    peers.check_shared_workdir(str(tmp_path), holds_lock=False)
    with pytest.raises(InputError, match=r"process 1 does not see the files that process 0 writes to .*other"):
        peers.check_shared_workdir(str(tmp_path / "other"), holds_lock=False)


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
def test_cluster_is_joined_only_if_there_is_one(environment, expected, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TPU_", "JAX_COORD", "JAX_NUM_PROC", "JAX_PROCESS")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: joined.append(options))
    with cluster.joined_cluster() as process_index:
        assert process_index == 0
    timeout = {"heartbeat_timeout_seconds": cluster.HEARTBEAT_TIMEOUT_SECONDS}
    assert joined == ([] if expected is None else [expected | timeout])


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (("host:1234", "two", None), "JAX_NUM_PROCESSES=two, JAX_PROCESS_ID=None; a cluster needs all three"),
        (("host", "2", "0"), "JAX_COORDINATOR_ADDRESS=host, "),
        (("host:1", "2", "2"), "JAX_PROCESS_ID=2; a cluster"),
        (("host:1", "0", "0"), "JAX_NUM_PROCESSES=0"),
    ],
)
def test_incomplete_cluster_variables_are_an_error(environment, message, monkeypatch):
    for name, value in zip(("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"), environment, strict=True):
        if value is not None:
            monkeypatch.setenv(f"JAX_{name}", value)
    with pytest.raises(InputError, match=message), cluster.joined_cluster():
        pass


def test_slurm_variable_must_be_a_number(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "many")
    with pytest.raises(InputError, match="SLURM_STEP_NUM_TASKS=many; it must be a number"), cluster.joined_cluster():
        pass
