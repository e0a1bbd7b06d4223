"""`kvae.SOM` over two processes with unequal shares of the rows equals `kvae.SOM` of all rows in one process."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from scipy.sparse import csr_array

import kvae
from kvae.core.errors import InputError
from kvae.som import processes

SHARES = (0, 50, 300)  # first row of each process

PROGRAM = f"""
import json, os, sys
import jax
import numpy as np
from scipy.sparse import csr_array
import kvae
from kvae.core.errors import InputError

number = int(os.environ["NUMBER"])
jax.distributed.initialize(os.environ["ADDRESS"], {len(SHARES) - 1}, number)
X = np.random.default_rng(0).normal(size=({SHARES[-1]}, 3))
first, end = {SHARES}[number : number + 2]
mine = X[first:end]
result = {{}}
sparse = csr_array(np.where(X > 0.5, X, 0)[first:end])
for name, rows in (("fit", mine), ("stream", [mine[:7], mine[7:]]), ("sparse", sparse)):
    som = kvae.SOM((4, 5), n_epochs=4, random_state=0).fit(rows)
    errors = som.quantization_error_, som.topographic_error_
    result[name] = [som.cluster_centers_.tolist(), som.labels_.tolist(), *errors]
som = kvae.SOM((4, 5), n_epochs=4, random_state=0).partial_fit(mine).partial_fit(mine)
result["partial"] = som.cluster_centers_.tolist()
result["random"] = kvae.SOM((2, 2), init="random", n_epochs=0).fit(mine).cluster_centers_.tolist()
for name, rows in (
    ("NaN", np.where(number == 1, np.nan, mine)),
    ("features", mine[:, : 2 + number]),
    ("mixed", sparse if number else mine),
):
    try:
        kvae.SOM((4, 5)).fit(rows)
    except InputError as error:
        result[name] = str(error)
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def results():
    """What each process printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "ADDRESS": address, "NUMBER": str(number), "JAX_NUM_CPU_DEVICES": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(len(SHARES) - 1)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0] * len(started), outputs
    return [json.loads(stdout.splitlines()[-1]) for stdout, _ in outputs]


@pytest.fixture(scope="module")
def X():  # noqa: N802
    return np.random.default_rng(0).normal(size=(SHARES[-1], 3))


@pytest.mark.parametrize("name", ["fit", "stream", "sparse"])
def test_processes_learn_the_map_of_all_rows(results, X, name):
    X = csr_array(np.where(X > 0.5, X, 0)) if name == "sparse" else X
    som = kvae.SOM((4, 5), n_epochs=4, random_state=0).fit(X)
    for result in results:
        centers, _, quantization_error, topographic_error = result[name]
        assert centers == results[0][name][0]
        np.testing.assert_allclose(centers, som.cluster_centers_, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(quantization_error, som.quantization_error_, rtol=1e-6)
        np.testing.assert_allclose(topographic_error, som.topographic_error_, rtol=1e-6)
    assert np.concatenate([result[name][1] for result in results]).tolist() == som.labels_.tolist()


def test_partial_fit_adds_the_rows_of_all_processes(results, X):
    som = kvae.SOM((4, 5), n_epochs=4, random_state=0).partial_fit(X).partial_fit(X)
    for result in results:
        np.testing.assert_allclose(result["partial"], som.cluster_centers_, rtol=1e-6, atol=1e-6)


def test_random_start_is_the_same_in_all_processes(results):
    assert results[0]["random"] == results[1]["random"]


def test_error_of_one_process_ends_all(results):
    assert "X contains NaN" in results[1]["NaN"]
    assert results[0]["NaN"] == "process 1 cannot continue; its own error says why"
    for result in results:
        assert result["features"] == "X has [2, 3] features in the processes; it must be the same in all"
        assert result["mixed"] == "X has [0, 1] sparse rows (0 or 1) in the processes; it must be the same in all"


def test_supervised_maps_refuse_several_processes(monkeypatch):
    processes.refuse_several("SOMClassifier")
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match="SOMClassifier learns from the rows of one process"):
        kvae.SOMClassifier((2, 2)).fit([[0.0], [1.0]], [0, 1])
