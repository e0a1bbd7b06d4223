"""Benchmarks of maps on real data: the readers, the measures, and the message about a missing file."""

import numpy as np
import pandas
import pytest

from kvae.benchmark import __main__ as benchmark
from kvae.benchmark import real_maps, real_sets, soms
from kvae.benchmark.real_sets import Rows
from kvae.core import program
from refusals import refusal

RNG = np.random.default_rng(0)
YEAST = {"cln": [[9.0]], "alpha": [[1.0, np.nan]], "cdc15": [[2.0]], "cdc28": [[3.0]], "elu": [[4.0]], "class": ["M"]}
SPILL = np.array([[1.0, 0.25], [0.5, 1.0]])


def write_tube(path, cells):
    """Writes cells [n, 3] of the channels Time, A and B as an FCS file whose channels A and B spill."""
    fields = {
        "$PAR": "3", "$TOT": str(len(cells)), "$DATATYPE": "F", "$BYTEORD": "4,3,2,1", "$P1N": "Time", "$P2N": "A",
        "$P3N": "B", "SPILL": ",".join(["2", "A", "B", *map(str, SPILL.ravel())]),
    }  # fmt: skip
    text = "|" + "|".join(f"{key}|{value}" for key, value in fields.items()) + "|"
    data = cells.astype(">f4").tobytes()
    start, end = 58, 58 + len(text)
    header = f"FCS3.0    {start:8}{end - 1:8}{end:8}{end + len(data) - 1:8}{0:8}{0:8}"
    path.write_bytes(header.encode() + text.encode() + data)


def test_tube_is_compensated_and_scaled(tmp_path):
    pure = RNG.uniform(0, 1_000, (50, 2))
    cells = np.concatenate([np.arange(50)[:, None], pure @ SPILL], axis=1)
    write_tube(tmp_path / "facs_diva_test.fcs", cells)
    vectors, labels = real_sets.read_set("cytometry", [str(tmp_path)])
    expected = np.arcsinh(pure / 150)
    expected = (expected - expected.mean(axis=0)) / expected.std(axis=0)
    np.testing.assert_allclose(vectors, expected, atol=1e-4)
    assert labels is None


@pytest.mark.parametrize("size", [0, 57, 300])
def test_truncated_tube_is_one_line(tmp_path, size):
    path = tmp_path / "facs_diva_test.fcs"
    write_tube(path, RNG.uniform(0, 1, (50, 3)))
    path.write_bytes(path.read_bytes()[:size])
    assert "pip install --no-deps fcsparser" in refusal(real_sets.read_set, "cytometry", [str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "file", "content", "vectors", "labels"),
    [
        ("peppaPic", "peppaPic.rda", [[1, 255, 0, 51], [3, 0, 255, 0]], [[1, 0, 0.2], [0, 1, 0]], [1, 3]),
        ("letters", "LetterRecognition.rda", {"lettr": ["T", "I"], "x": [1, 3]}, [[-1], [1]], [1, 0]),
        ("satellite", "Satellite.rda", {"x": [1, 3], "classes": ["red soil", "grey soil"]}, [[-1], [1]], [1, 0]),
        ("yeast", "yeast.rda", YEAST, [[1, np.nan, 2, 3, 4]], None),
    ],
)
def test_files_of_r_become_rows_and_labels(tmp_path, monkeypatch, name, file, content, vectors, labels):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / file).touch()
    value = content if name in ("peppaPic", "yeast") else pandas.DataFrame(content)
    monkeypatch.setattr(real_sets, "_read_r", lambda path: value)
    found = real_sets.read_set(name, [str(tmp_path)])
    np.testing.assert_allclose(found.vectors, vectors)
    assert found.vectors.dtype == np.float32
    np.testing.assert_array_equal(found.labels, labels)


def test_missing_files_say_how_to_get_them(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(real_sets, "R_FOLDER", tmp_path)
    assert program.run(benchmark.main, ["--real-maps", f"--data={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert "peppaPic is left out, because peppaPic.rda is missing: apt-get install r-cran-kohonen" in error
    assert "kvae: no data set was found" in error


def blobs(count):
    labels = np.arange(count) % 4
    return Rows((4 * np.eye(4)[labels] + 0.3 * RNG.normal(size=(count, 4))).astype(np.float32), labels)


def test_maps_of_separate_blobs_separate_the_labels(monkeypatch):
    monkeypatch.setattr(real_maps, "installed_fits", lambda without: ({"kvae": soms.fit_kvae}, set()))
    rows = real_maps.measure_maps(blobs(400), (4, 4))
    assert list(rows) == ["400 x 4, 4 x 4: kvae", "400 x 4, 4 x 4: MiniBatchKMeans"]
    ours, means = rows.values()
    assert ours["purity"] == means["purity"] == 1
    assert "topographic_error" in ours and "topographic_error" not in means


def test_populations_of_separate_blobs_are_the_labels(monkeypatch):
    monkeypatch.setattr(real_maps, "SEEDS", 2)
    monkeypatch.setattr(real_maps, "POPULATION_GRID", (4, 4))
    rows = real_maps.measure_populations(blobs(200))
    assert {f"4 populations: {name}" for name in ("kvae, Ward", "kvae, consensus", "MiniBatchKMeans")} <= set(rows)
    for row in rows.values():
        assert row["stability"] == row["ari_with_labels"] == 1


def test_imputation_beats_the_mean_where_features_depend():
    hidden = RNG.normal(size=(150, 1))
    vectors = (hidden @ RNG.normal(size=(1, 6)) + 0.1 * RNG.normal(size=(150, 6))).astype(np.float32)
    rows = {name: row["imputation_error"] for name, row in real_maps.measure_imputation(vectors).items()}
    assert rows["imputation: kvae"] < 0.5 * rows["imputation: mean of the feature"]
