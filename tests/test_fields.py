"""Fields: accepted values, error messages, and the reference page."""

import dataclasses
import pathlib
import re
from typing import Annotated

import numpy as np
import pytest
from annotated_types import Ge, Le

from kvae import data, main, models
from kvae.core import fields, program
from kvae.core.errors import InputError
from kvae.core.fields import Count, Declaration, NotNegative, OneOf, Positive, Shape, Share, validate, validate_fields
from kvae.training.config import reference
from kvae.training.config.command_line import config_of, read_config
from kvae.training.config.run_fields import ImageStatistics, RunFields
from kvae.training.config.sections import OPTIMIZER, declarations, validate_config

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (float, 1, 1.0),
        (Shape, [4, 8], (4, 8)),
        (Shape, (np.int64(4), np.int32(8)), (4, 8)),
        (tuple[tuple[Count, NotNegative], ...], [[3, 1]], ((3, 1.0),)),
        (float | None, None, None),
        (Positive | None, 2, 2.0),
        (bool, False, False),
    ],
)
def test_values_are_converted_to_the_declared_type(annotation, value, expected):
    converted = validate("x", value, annotation)
    assert converted == expected
    assert type(converted) is type(expected)


NAMES = tuple[Annotated[str, OneOf({"hard": 0, "none": 1})], ...]


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (int, True, "x is True; it must be an integer"),
        (int, 1.0, "x is 1.0; it must be an integer"),
        (float, "1", "x is '1'; it must be a number"),
        (float, float("nan"), "x is nan; it must be a number"),
        (Positive, float("inf"), "x is inf; it must be a number > 0"),
        (Share, 1.0, "x is 1.0; it must be a number >= 0 and < 1"),
        (bool, "False", "x is 'False'; it must be True or False"),
        (bool, 1, "x is 1; it must be True or False"),
        (str, 3, "x is 3; it must be a string"),
        (Shape, (), r"x is \(\); it must be a tuple of one or more integers, each >= 1"),
        (Shape, (4, 0), r"x is \(4, 0\); it must be a tuple of one or more integers, each >= 1"),
        (Shape, 4, "x is 4; it must be a tuple of one or more integers"),
        (Count, 2**31, "x is 2147483648; it must be an integer from 1 to 2147483647"),
        (tuple[int, int], (1,), r"x is \(1,\); it must be a tuple \(an integer, an integer\)"),
        (Positive | None, 0.0, "x is 0.0; it must be None or a number > 0"),
        (Annotated[int, Ge(1), Le(8)], 9, "x is 9; it must be an integer from 1 to 8"),
        (Annotated[str, OneOf({"hard": 0, "none": 1})], "hrad", "x is 'hrad'; did you mean 'hard'?"),
        (Annotated[str, OneOf({"hard": 0, "none": 1})], 7, "x is 7; it must be one of hard, none"),
        (NAMES, ("hrad",), "x is 'hrad'; did you mean 'hard'?"),
        (NAMES, "hard", "x is 'hard'; it must be a tuple of names, each one of hard, none"),
        (int, "a\n" * 200, r"x is 'a\\na\\n.*\.\.\.; it must be an integer$"),
    ],
)
def test_a_wrong_value_is_described_in_one_line(annotation, value, message):
    with pytest.raises(InputError, match=message) as caught:
        validate("x", value, annotation)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_fields_are_validated_by_name_and_completed():
    @dataclasses.dataclass
    class Owner:
        size: Count
        names: tuple[str, ...] = ()

    assert validate_fields("here", {"size": 3}, Owner) == {"size": 3, "names": ()}
    for values, message in [
        ({}, "here.size is missing; it must be an integer >= 1"),
        ({"size": 3, "nmes": ()}, "here has no field 'nmes'; did you mean 'names'"),
        ({"size": "x"}, "here.size is 'x'"),
    ]:
        with pytest.raises(InputError, match=message):
            validate_fields("here", values, Owner)


def test_every_field_of_every_config_has_a_meaning():
    all_of_them = [Declaration(RunFields), OPTIMIZER, Declaration(ImageStatistics)]
    for section, names in (
        ("dataset", data.DATASETS),
        ("model", models.MODELS),
        ("model.quantizer", models.QUANTIZERS),
    ):
        all_of_them += [declarations(section, name)[0] for name in names]
    for declaration in all_of_them:
        for entry in reference.entries("section", declaration):
            field = fields.fields_of(declaration.owner)[entry.path.partition(".")[2]]
            assert len(entry.meaning) > 10, entry
            assert fields.describe(field.annotation) == entry.kind


def test_names_of_sections_are_set_before_their_fields():
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


def test_both_levels_keep_the_quantiser_they_share():
    config, _ = config_of(f"{ROOT}/configs/photos_vqvae.py", ["--config.model.name=vqvae2"])
    assert validate_config(config)["model"]["quantizer"]["grid_shape"] == (16, 32)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.optimizer.rate=x", "config.optimizer has no field 'rate'; its fields are clip_norm, learning_rate"),
        ("--config.extra.b=2", "config has no field 'extra'"),
        ("--config.model.quantizer.nam=x", "did you mean 'name'"),
    ],
)
def test_an_unknown_field_is_named(argument, message):
    with pytest.raises(InputError, match=message):
        config_of(f"{ROOT}/configs/photos_vqvae.py", [argument])


def test_a_field_missing_from_the_file_can_be_set(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def get_config():\n    return {'steps': 3, 'batch_size': 8}\n")
    assert config_of(str(file), ["--config.patience_evaluations=2"])[0]["patience_evaluations"] == 2
    with pytest.raises(
        InputError, match="config has no field 'patience_evaluation'; did you mean 'patience_evaluations'"
    ):
        config_of(str(file), ["--config.patience_evaluation=2"])


def test_each_config_imports_the_files_of_its_own_folder(tmp_path):
    for steps, name in enumerate("ab", start=1):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text("import variants\ndef get_config(): return variants.fields")
        (tmp_path / name / "variants.py").write_text(f"fields = {{'steps': {steps}}}")
    read = [read_config(str(tmp_path / name / "mine.py")).steps for name in "aba"]
    assert (read, read_config(f"{ROOT}/configs/photos_vqvae.py:smoke").steps) == ([1, 2, 1], 4)


def test_the_reference_page_is_up_to_date():
    assert (ROOT / "configs" / "README.md").read_text() == reference.as_page()


def test_the_reference_page_names_fields_not_code():
    tables = reference.as_page().partition("## The run")[2]
    names = {path.rpartition(".")[2] for path in re.findall(r"^\| `([\w.]+)` \|", tables, re.MULTILINE)}
    meanings = [line.split(" | ")[-1] for line in tables.splitlines() if line.startswith("| `")]
    quoted = {name for meaning in meanings for name in re.findall(r"`([^`]+)`", meaning)}
    assert quoted <= names
    assert not [meaning for meaning in meanings if not meaning.endswith(". |") and not meaning.endswith("... |")]


def test_meanings_keep_an_ellipsis_and_drop_registries():
    def owner(split: str, name: str):
        """Has fields.

        Args:
          split: a split, such as "train", "train+test", ...
          name: the schedule of the rate, a name in `SCHEDULES`.
        """

    texts = {"split": 'A split, such as "train", "train+test", ...', "name": "The schedule of the rate."}
    assert reference.meanings(owner) == texts


def test_help_lists_the_fields_of_a_config_and_their_values(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert program.run(main.main, ["--config=configs/photos_vqvae.py", "--config.steps=7", "--help"]) == 0
    output = capsys.readouterr().out
    for words in ("  steps = 7\n", "  model.quantizer.neighborhood = 'gaussian'\n", "weight of the commitment loss"):
        assert words in output
    assert "model.mean" not in output
