"""Fields: what is accepted, what is said of what is not, and the reference of all of them."""

import dataclasses
import inspect
import pathlib
import subprocess
import sys
from typing import Annotated

import numpy as np
import pytest
from annotated_types import Ge, Le

import kvae
from kvae import data, main, models
from kvae.core import fields, program
from kvae.core.errors import InputError
from kvae.core.fields import Count, Counts, Declaration, NotNegative, OneOf, Positive, Share, validate, validate_fields
from kvae.training.config import reference
from kvae.training.config.command_line import config_of
from kvae.training.config.schema import ImageStatistics, RunFields
from kvae.training.config.sections import OPTIMIZER, declarations, validate_config

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("annotation", "given", "expected"),
    [
        (float, 1, 1.0),
        (Counts, [4, 8], (4, 8)),
        (Counts, (np.int64(4), np.int32(8)), (4, 8)),
        (tuple[tuple[Count, NotNegative], ...], [[3, 1]], ((3, 1.0),)),
        (float | None, None, None),
        (Positive | None, 2, 2.0),
        (bool, False, False),
    ],
)
def test_values_get_the_type_that_is_meant(annotation, given, expected):
    found = validate("x", given, annotation)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "given", "message"),
    [
        (int, True, "x is True; it must be an integer"),
        (int, 1.0, "x is 1.0; it must be an integer"),
        (float, "1", "x is '1'; it must be a number"),
        (float, float("nan"), "x is nan; it must be a number"),
        (Positive, float("inf"), "x is inf; it must be a number, larger than 0"),
        (Share, 1.0, "x is 1.0; it must be a number, 0 or larger and below 1"),
        (bool, "False", "x is 'False'; it must be True or False"),
        (bool, 1, "x is 1; it must be True or False"),
        (str, 3, "x is 3; it must be a string"),
        (Counts, (), r"x is \(\); it must be a tuple of one or more integers, each 1 or larger"),
        (Counts, (4, 0), r"x is \(4, 0\); it must be a tuple of one or more integers, each 1 or larger"),
        (Counts, 4, "x is 4; it must be a tuple of one or more integers"),
        (Count, 2**31, "x is 2147483648; it must be an integer, 1 or larger and at most 2147483647"),
        (tuple[int, int], (1,), r"x is \(1,\); it must be \(an integer; an integer\)"),
        (Positive | None, 0.0, "x is 0.0; it must be a number, larger than 0 or None"),
        (Annotated[int, Ge(1), Le(8)], 9, "x is 9; it must be an integer, 1 or larger and at most 8"),
        (Annotated[str, OneOf({"hard": 0, "none": 1})], "hrad", "x is 'hrad'; did you mean 'hard'?"),
        (Annotated[str, OneOf({"hard": 0, "none": 1})], 7, "x is 7; it must be one of hard, none"),
        (int, "a\n" * 200, r"x is 'a\\na\\n.*\.\.\.; it must be an integer$"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(annotation, given, message):
    with pytest.raises(InputError, match=message) as caught:
        validate("x", given, annotation)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_help_shows_a_layer_s_fields_without_their_types():
    shown = str(inspect.signature(kvae.KohonenVQ))
    assert shown.startswith("(grid_shape, neighborhood='hard', shrink_step=0.1, ")
    assert "Annotated" not in shown and "parent" not in shown


def test_fields_are_checked_by_name_and_completed():
    @dataclasses.dataclass
    class Owner:
        size: Count
        names: tuple[str, ...] = ()

    assert validate_fields("here", {"size": 3}, Owner) == {"size": 3, "names": ()}
    for given, message in [
        ({}, "here has no size; it must be an integer, 1 or larger"),
        ({"size": 3, "nmes": ()}, "here has no field 'nmes'; did you mean 'names'"),
        ({"size": "x"}, "here.size is 'x'"),
    ]:
        with pytest.raises(InputError, match=message):
            validate_fields("here", given, Owner)


def test_every_field_of_every_config_has_a_meaning():
    found = [Declaration(RunFields), OPTIMIZER, Declaration(ImageStatistics)]
    for section, names in (
        ("dataset", data.DATASETS),
        ("model", models.MODELS),
        ("model.quantizer", models.QUANTIZERS),
    ):
        found += [declarations(section, name)[0] for name in names]
    for declaration in found:
        for entry in reference.entries("section", declaration):
            assert len(entry.meaning) > 10, entry
            assert (
                fields.describe(fields.fields_of(declaration.owner)[entry.path.partition(".")[2]].annotation)
                == entry.kind
            )


def test_names_are_set_before_what_they_allow_from_the_outside_in():
    file = f"{ROOT}/configs/photos_vqvae.py"
    settings = [
        "--config.model.quantizer.quantizer.commitment_weight=0.5",
        "--config.model.quantizer.quantizer.name=gradient",
        "--config.model.quantizer.name=residual",
    ]
    for order in (settings, settings[::-1]):
        quantizer = config_of(file, order)[0]["model"]["quantizer"]
        assert quantizer["name"] == "residual"
        assert quantizer["quantizer"]["name"] == "gradient"
        assert quantizer["quantizer"]["commitment_weight"] == 0.5


def test_a_model_of_two_levels_keeps_the_quantiser_that_both_share():
    config, _ = config_of(f"{ROOT}/configs/photos_vqvae.py", ["--config.model.name=vqvae2"])
    assert validate_config(config)["model"]["quantizer"]["grid_shape"] == (16, 32)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.optimizer.rate=x", "config.optimizer has no field 'rate'; it has clip_norm, learning_rate, name"),
        ("--config.extra.b=2", "config has no field 'extra'"),
        ("--config.model.quantizer.nam=x", "did you mean 'name'"),
    ],
)
def test_a_field_of_no_section_is_named(argument, message):
    with pytest.raises(InputError, match=message):
        config_of(f"{ROOT}/configs/photos_vqvae.py", [argument])


def test_a_field_that_a_file_leaves_out_can_be_set_too(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def get_config():\n    return {'steps': 3, 'batch_size': 8}\n")
    assert config_of(str(file), ["--config.patience_evaluations=2"])[0]["patience_evaluations"] == 2
    with pytest.raises(
        InputError, match="config has no field 'patience_evaluation'; did you mean 'patience_evaluations'"
    ):
        config_of(str(file), ["--config.patience_evaluation=2"])


def test_the_page_of_all_fields_is_that_of_the_code():
    made = subprocess.run(
        [sys.executable, "-m", "kvae.training.config.reference"], capture_output=True, text=True, check=True
    )
    assert (ROOT / "configs" / "README.md").read_text() == made.stdout


def test_help_lists_the_fields_of_a_config_with_its_values(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert program.run(main.main, ["--config=configs/photos_vqvae.py", "--config.steps=7", "--help"]) == 0
    shown = capsys.readouterr().out
    for words in ("  steps = 7\n", "  model.quantizer.neighborhood = 'gaussian'\n", "weight of the commitment loss"):
        assert words.lower() in shown.lower()
    assert "model.mean" not in shown
