"""The HTML page of runs: its data equals what the runs return, and it loads nothing."""

import base64
import functools
import html.parser
import io
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import kvae
from kvae.core import program
from kvae.models.autoencoders import inspection
from kvae.report import __main__ as report
from kvae.report.page import write_page
from kvae.runs.run import Run
from kvae.training import step
from kvae.training.config.sections import build_model, load_data, validate_config
from kvae.training.evaluate import num_pictured, samples


class Page(html.parser.HTMLParser):
    """Elements with their attributes, text, and what the element `data` holds."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.text, self.data = [], "", ""
        self.feed(pathlib.Path(path).read_text())
        self.data = json.loads(self.data)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        if attributes.get("id") == "data":
            self.data += data
        elif tag not in ("script", "style"):
            self.text += data


def pictures(sheet):
    """The images uint8 [n, h, w, 3] of a sheet of tiles."""
    head, _, body = sheet["src"].partition(",")
    assert head == "data:image/png;base64"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))
    rows = pixels.reshape(-1, sheet["height"], sheet["columns"], sheet["width"], 3)
    return rows.swapaxes(1, 2).reshape(-1, sheet["height"], sheet["width"], 3)[: sheet["count"]]


@pytest.fixture(scope="module")
def folder(trained_run, tmp_path_factory):
    """A run with two codebooks, and a run without a checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(trained_run("vqvae2"), folder / "levels")
    (folder / "begun").mkdir()
    shutil.copy(folder / "levels" / "config.json", folder / "begun")
    return folder


def untrained(config):
    """Returns a run with random variables; initialising the model would compile it."""
    dataset, config = load_data(config)
    model, batch = build_model(config), step.example_batch(dataset.train[0])
    shapes = jax.eval_shape(functools.partial(model.init, method="loss_and_metrics"), jax.random.key(0), batch)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), shapes)
    return Run("untrained", config, 0, model, variables)


def write(*arguments):
    return program.run(report.main, [*map(str, arguments), "--html"])


def test_page_data_equals_the_run(folder, tmp_path):
    assert write(folder / "levels", f"--out={tmp_path / 'page.html'}") == 0
    data, run = Page(tmp_path / "page.html").data, kvae.load(str(folder / "levels"))
    validation = load_data(run.config)[0].validation
    images = samples(validation, num_pictured(validation))["image"]
    np.testing.assert_array_equal(pictures(data["images"][0]), images)
    (shown,) = data["runs"]
    assert (shown["name"], shown["step"], shown["images"]) == (str(folder / "levels"), 4, 0)
    codebooks = {codebook["name"]: codebook for codebook in shown["codebooks"]}
    for name, codes in run.encode(images).items():
        codebook = codebooks[f"{name} level"]
        np.testing.assert_array_equal(np.reshape(codebook["codes"], codes.shape), codes)
        np.testing.assert_array_equal(codebook["sheet"], np.arange(32).reshape(4, 8))
        views = {view["label"]: view for view in codebook["views"]}
        fixed_codes = {
            other: np.bincount(c.ravel()).argmax() for other, c in run.encode(images).items() if other != name
        }
        decoded = inspection.constant_code_images(run.model, run.variables, name, fixed_codes)
        np.testing.assert_array_equal(pictures(views["decoded"]["tiles"]), decoded)
        view = run.model.codebook_views(run.variables, {"image": images})[name]
        np.testing.assert_allclose(views["distance to neighbours"]["values"], view.u_matrix.ravel(), rtol=1e-3)
        patches = pictures(views["mean image patch"]["tiles"])
        side = 32 * 3 // codes.shape[1]
        expected = view.mean_patches(images).reshape(32, side, side, 3)
        if side <= 16:
            expected = expected.repeat(32 // side, 1).repeat(32 // side, 2)
        np.testing.assert_array_equal(patches, expected)


def test_page_loads_nothing_and_works_by_keyboard(folder, tmp_path):
    assert write(folder / "levels", f"--out={tmp_path / 'page.html'}") == 0
    page = Page(tmp_path / "page.html")
    policy = next(
        attributes["content"]
        for _, attributes in page.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert not [tag for tag, attributes in page.elements if {"src", "href"} & attributes.keys() or tag == "link"]
    boards = [attributes for tag, attributes in page.elements if tag == "canvas"]
    assert [board["class"] for board in boards] == ["map", "image", "images"]
    assert all(board["tabindex"] == "0" for board in boards)
    assert ("p", {"class": "words", "aria-live": "polite"}) in page.elements


def test_runs_of_a_folder_without_checkpoint_are_left_out_and_named(folder, tmp_path, capsys):
    assert write(folder, f"--out={tmp_path / 'page.html'}") == 0
    output, page = capsys.readouterr().out, Page(tmp_path / "page.html")
    assert output.startswith(f"{tmp_path / 'page.html'}: ")
    assert f"MB, with the codebooks of {folder / 'levels'}\n" in output
    assert f"left out: {folder / 'begun'} has no checkpoint yet" in output
    assert f"left out: {folder / 'begun'} has no checkpoint yet" in page.text
    assert [run["name"] for run in page.data["runs"]] == [str(folder / "levels")]
    assert ("table", {}) in page.elements
    assert f"{folder / 'begun'}, {folder / 'levels'}" in page.text  # two seeds of one config are one line


def test_any_models_are_shown_side_by_side(make_config, tmp_path):
    quantizer = {"name": "residual", "depth": 2, "quantizer": {"name": "kohonen", "grid_shape": (4, 6)}}
    residual, plain = (make_config("vqvae", **fields) for fields in ({"model.quantizer": quantizer}, {}))
    runs = [untrained(validate_config(config)) for config in (residual, make_config("urlsom"), plain)]
    write_page(tmp_path / "page.html", runs, "| a |\n|---|\n| 1 |", "t")
    residual, neurons, plain = Page(tmp_path / "page.html").data["runs"]
    assert [run["images"] for run in (residual, neurons, plain)] == [0, 1, 0]
    (map,) = neurons["codebooks"]
    assert (map["unit"], map["event"], map["grid"], map["context"]) == ("neuron", "winning", [1, 1], 1)
    assert [view["label"] for view in map["views"]] == ["mean image patch"]
    assert len(map["codes"]) == Page(tmp_path / "page.html").data["images"][1]["count"]
    assert [codebook["name"] for codebook in residual["codebooks"]] == ["codebook 0", "codebook 1"]
    assert plain["codebooks"][0]["name"] == "codebook"


def test_names_of_folders_are_escaped(folder, tmp_path):
    odd = tmp_path / "<b>&amp; <script>alert(1)<"
    shutil.copytree(folder / "levels", odd)
    assert write(odd, f"--out={tmp_path / 'page.html'}") == 0
    page = Page(tmp_path / "page.html")
    assert page.data["runs"][0]["name"] == str(odd)
    assert f"Codebooks of {odd}" in page.text
    assert not [tag for tag, _ in page.elements if tag == "b"]
    assert [tag for tag, _ in page.elements].count("script") == 2


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("begun", "begun has no checkpoint yet"),
        ("begun/", "begun has no checkpoint yet"),
        ("none", "none has no run: no config.json in it or its subfolders"),
    ],
)
def test_run_without_checkpoint_is_one_line_and_no_page(folder, tmp_path, capsys, path, message):
    assert write(f"{folder}/{path}", f"--out={tmp_path / 'page.html'}") == 2
    assert capsys.readouterr().err.strip().endswith(message)
    assert not list(tmp_path.iterdir())
