"""The table of priors: its commands, what it reads from finished runs, and its controls."""

import json
import math
import pathlib

import numpy as np
import pytest
from PIL import Image

from kvae import main
from kvae.data import ArrayExamples, Dataset
from kvae.paper import prior_arms as priors
from kvae.training.config.sections import flatten

pytestmark = pytest.mark.usefixtures("in_the_project")

BITS = {"plain": 8.0, "address_input": 7.5}
"""Bits per code of the fabricated runs; 9 for all other arms, 1 more with few images, 0.25 more per seed."""
CODEBOOK = ("codebook", (8, 8), 512, (16, 32), "plane", 3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of all runs: every prior is finished, without having been trained."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(pathlib.Path(main.__file__).parents[1])
        for _, (module, *arguments) in priors.commands(runs, "photos", seeds=2, smoke=False):
            if module == "kvae.main":
                finish(arguments)
    return runs


def finish(arguments):
    config, workdir = main.parse(arguments)
    config["model"]["codebooks"] = (CODEBOOK,)
    fields, folder = flatten(config), pathlib.Path(workdir)
    bits = BITS.get(folder.parent.name.rsplit("_", 1)[0], 9.0) + 0.25 * config["seed"]
    bits += fields["dataset.train_examples"] > 0
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    rows = [{"step": step, "valid/loss": 1.0, "valid/bits": bits + abs(step - 200) / 400} for step in (50, 200, 400)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_each_command_is_read_as_its_own_arm(finished):
    bits = priors.read_bits(priors.folder_of(finished, "photos"))
    assert len(bits) == 2 * sum(len(codes.arms) * len(codes.crops) for codes in priors.CODES.values())
    assert bits["map", "plain", 0, 1] == 8.25  # the lowest of the run, not the last
    assert bits["ema_sorted", "address_input", 1_000, 0] == 8.5


def test_differences_pair_seeds_on_the_same_tokens(finished):
    bits = priors.read_bits(priors.folder_of(finished, "photos"))
    assert priors.differences(bits, "map", "address_input", 0) == [-0.5, -0.5]
    assert priors.differences(bits, "map_shuffled", "address_head", 1_000) == [1.0, 1.0]
    del bits["map", "plain", 0, 0]  # the shuffled map has no plain prior of its own
    assert priors.differences(bits, "map_shuffled", "address_head", 0) == [1.0]


def test_arms_that_use_the_grid_have_both_controls():
    assert priors.CODES["map_shuffled"].arms == priors.CODES["ema_sorted"].arms == priors.GRID
    assert set(priors.CODES["map"].arms) == {*priors.ARMS}


def test_tables_show_every_arm_and_its_head(finished, monkeypatch):
    monkeypatch.setattr(priors, "load", lambda *_, **__: type("Run", (), {"model": priors.build_model(config())})())
    monkeypatch.setattr(priors, "psnr_with_samples", lambda *_: (28.0, 1.5))
    text = priors.markdown(finished, "photos")
    few, whole, tokenizers = text.split("### ")[1:]
    assert few.startswith("Priors on photos, 1,000 training images, n = 2 seeds")
    assert "| plain: softmax, table of codes | 33,280 | 9.12 ± 0.18 |" in few
    assert "| input: address | 33,280 | -0.50 ± 0.00 | -0.50 ± 0.00 | — |" in whole
    head = 64 * (16 + 32) + 16 + 32 + 16 * 64
    assert f"| head: address | {head:,} | +1.00 ± 0.00 |" in whole
    assert "| FSQ | 8.12 ± 0.18 | 520 ± 11 | 28.00 ± 0.00 | 1.50 ± 0.00 |" in tokenizers
    assert math.isclose(64 * 8.125, 520)


def test_figure_shows_every_arm_and_its_controls(finished, tmp_path):
    (path,) = priors.figure([str(priors.folder_of(finished, "photos"))], f"{tmp_path}/figure")
    assert Image.open(path).text["Title"].startswith("What the address of a code")
    assert "means over seeds (n = 2)" in Image.open(path).text["Description"]


def config():
    parsed, _ = main.parse(["--config=configs/tokens_prior.py"])
    parsed["model"]["codebooks"] = (CODEBOOK,)
    return parsed


class Grey:
    """A tokeniser whose codes are 32 grey levels, and a prior whose samples are `shift` levels brighter."""

    config, shift = {}, 0

    def encode(self, images):
        return {"codebook": images[..., 0] // 8}

    def decode(self, codes):
        return np.repeat(codes["codebook"][..., None] * 8 + 4, 3, axis=-1)

    def sample_codes(self, count, *, key, codes, mask):
        return {name: np.where(mask[name], array + self.shift, array) for name, array in codes.items()}


def test_replaced_codes_cost_psnr(monkeypatch):
    grey = np.random.default_rng(0).integers(0, 8, (40, 8, 8, 1)) * 8
    examples = ArrayExamples({"image": np.repeat(grey, 3, axis=-1).astype(np.uint8)})
    monkeypatch.setattr(priors, "load_data", lambda config: (Dataset(examples, {"validation": examples}), config))
    model = Grey()
    whole, lost = priors.psnr_with_samples(model, model, 0)
    assert (whole, lost) == (pytest.approx(10 * math.log10(255**2 / 16)), 0)  # every value is off by 4
    model.shift = 2
    _, lost = priors.psnr_with_samples(model, model, 0)
    assert lost == pytest.approx(10 * math.log10(0.9 + 0.1 * 400 / 16), rel=0.05)  # a tenth are off by 20
