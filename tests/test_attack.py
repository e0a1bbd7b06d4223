"""Whatever the input, kvae accepts it or raises an InputError of one line.

    pytest --hypothesis-profile=nightly tests/test_attack.py

tries four thousand inputs instead of two hundred, and different ones each time.
"""

import copy
import io
import json
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import kvae
from kvae.core.errors import InputError
from kvae.data.images import read_image
from kvae.runs import codes as codes_module
from kvae.runs.comparison import comparison_table
from kvae.runs.seeds import read_seeds
from kvae.training.config.command_line import config_of, read_config
from kvae.training.config.sections import build_model, validate_config

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = ("photos_vqvae", "photos_vqvae2", "digits_urlsom", "folder_vqvae")

numbers = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.sampled_from([0, -1, 1, 10**6, 2**31, 10**10, 10**400, 1e-300])
)
plain = st.one_of(st.none(), numbers, st.text(max_size=8), st.sampled_from(["none", "hard", "kohonen", "fsq", "False"]))
json_values = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
values = st.one_of(
    json_values,
    st.lists(numbers, max_size=4).map(tuple),
    st.sampled_from(
        [b"x", object(), print, 1j, {1: 2}, {2, 3}, np.float32(1), np.ones(3), (1,) * 100, [[]], ((1, 2),)]
    ),
)


def attempt(call, *arguments, **fields):
    """Returns the result of a call and None, or None and the message of its InputError."""
    try:
        return call(*arguments, **fields), None
    except InputError as error:
        return None, str(error)


def is_one_line(message):
    """True if there is no message or it is one printable line."""
    return message is None or (message != "" and message.isprintable() and len(message) < 2_000)


def paths(tree) -> list[tuple]:
    """Returns the paths of all values in a nested dict, sections included."""
    all_paths = []
    for name, value in tree.items():
        all_paths += [(name,), *((name, *rest) for rest in (paths(value) if isinstance(value, dict) else []))]
    return all_paths


def put(tree, path, value):
    """Returns a copy of a nested dict with one value replaced."""
    tree = section = copy.deepcopy(tree)
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = value
    return tree


BASES = {name: config_of(f"{ROOT}/configs/{name}.py:smoke", [])[0] for name in CONFIGS}


def make_model(config):
    """Builds the model of a config as training does."""
    config = validate_config(config)
    json.dumps(config)
    statistics = {"mean": (1.0, 2.0, 3.0), "std": (1.0, 2.0, 3.0)}
    dataset = {**config["dataset"], **{k: v for k, v in statistics.items() if not config["dataset"].get(k, True)}}
    return build_model({**config, "dataset": dataset})


@given(st.sampled_from(CONFIGS), st.data(), values)
def test_any_value_of_any_field(name, data, value):
    path = data.draw(st.sampled_from(paths(BASES[name])))
    _, message = attempt(make_model, put(BASES[name], path, value))
    assert is_one_line(message)


@given(st.sampled_from(CONFIGS), st.data(), st.text(max_size=12) | plain.map(str))
def test_any_text_after_a_field(name, data, text):
    path = ".".join(data.draw(st.sampled_from(paths(BASES[name]))))
    extra = data.draw(st.sampled_from(["", ".x", ".name", "x", "."]))
    result, message = attempt(config_of, f"{ROOT}/configs/{name}.py:smoke", [f"--config.{path}{extra}={text}"])
    assert is_one_line(message)
    if result is not None:
        _, message = attempt(make_model, result[0])
        assert is_one_line(message)


LINES = r"""
def get_config(variant=None):
    return 3
    return {'steps': 1, 'batch_size': 2}
    return {1: 2, 'a': {3.5: None}}
    return {'model': {'name': print}}
    return get_config()
    return config
    raise ValueError('a\nb')
    yield
    config = ConfigDict()
    config.x.y = 1
    config.config = config
from ml_collections import ConfigDict
import nonesuch
get_config = 3
raise SystemExit('enough')
class E(BaseException): pass
raise E
x = (
é
""".splitlines()
LINES += ["\x00", "\tx"]


@given(st.lists(st.sampled_from(LINES), max_size=5).map(lambda lines: "\n".join(lines).encode()) | st.binary())
def test_any_config_file(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any_config.py"
    path.write_bytes(content)
    config, message = attempt(read_config, str(path))
    assert is_one_line(message)
    if config is not None:
        result, message = attempt(config_of, str(path), [])
        assert is_one_line(message)
        _, message = attempt(validate_config, result[0] if result else {})
        assert is_one_line(message)


def corrupt(content: bytes, data) -> bytes:
    """Returns the bytes of a file, cut, zeroed or replaced at some position."""
    start = data.draw(st.integers(0, len(content)))
    inserted = data.draw(st.binary(max_size=8) | st.just(bytes(64)))
    length = data.draw(st.sampled_from([0, 1, len(inserted), len(content)]))
    return content[:start] + inserted + content[start + length :]


@given(st.sampled_from(CONFIGS), st.data(), json_values)
def test_any_config_json_of_a_run(tmp_path_factory, name, data, value):
    folder = tmp_path_factory.getbasetemp() / "any_run"
    folder.mkdir(exist_ok=True)
    config = validate_config(BASES[name])
    row = {"step": config["steps"], "valid/loss": 1.0, "valid/reconstruction_loss": 1.0}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    config = put(config, data.draw(st.sampled_from(paths(config))), value)
    content = json.dumps(data.draw(st.sampled_from([config, value]))).encode()
    if data.draw(st.booleans()):
        content = corrupt(content, data)
    (folder / "config.json").write_bytes(content)
    _, message = attempt(lambda: comparison_table(read_seeds([str(folder)])))
    assert is_one_line(message)


def encoded(format: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(file, format)
    return file.getvalue()


PICTURES = {format: encoded(format) for format in ("PNG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "TGA", "ICO")}


@given(st.sampled_from([*PICTURES]), st.data())
def test_any_picture(tmp_path_factory, format, data):
    path = tmp_path_factory.getbasetemp() / "any.png"
    path.write_bytes(corrupt(PICTURES[format], data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, message = attempt(read_image, path, 8, crop=data.draw(st.booleans()))
    assert is_one_line(message)


LAYERS = {
    "kohonen": kvae.KohonenVQ((3, 4), gradient="rotation", restart_below=0.1),
    "cosine": kvae.KohonenVQ((3, 4), "none", metric="cosine"),
    "gradient": kvae.GradientVQ((3, 4), "hard"),
    "fsq": kvae.FSQ((3, 4)),
    "residual": kvae.ResidualVQ(quantizer=kvae.KohonenVQ((3, 4)), depth=2),
    "grouped": kvae.GroupedVQ(quantizer=kvae.KohonenVQ((3, 4)), groups=2),
}
TYPES = [
    "float32",
    "float16",
    "bfloat16",
    "float64",
    "longdouble",
    "int32",
    "uint8",
    "bool",
    "complex64",
    "object",
    "U1",
]
arrays = st.builds(
    lambda shape, dtype: np.zeros(shape, jnp.bfloat16 if dtype == "bfloat16" else dtype),
    st.lists(st.sampled_from([0, 1, 2, 4, 5]), max_size=4) | st.just([2, 5, 4]),
    st.sampled_from(TYPES) | st.just("float32"),
)  # fmt: skip


VARIABLES = {name: jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 4))) for name, layer in LAYERS.items()}


@given(st.sampled_from([*LAYERS]), arrays | plain, st.none() | arrays | plain, st.booleans())
def test_any_array_for_a_layer(name, z, mask, codes):
    def call(variables):
        if codes:
            return LAYERS[name].apply(variables, z, method="lookup")
        return LAYERS[name].apply(variables, z, mask=mask, train=True, mutable=["codebook"])

    _, message = attempt(jax.eval_shape, call, VARIABLES[name])
    assert is_one_line(message)


@given(arrays | values, st.dictionaries(st.sampled_from(["top", "bottom", "codebook"]), arrays | values) | values)
def test_any_array_for_a_run(images, codes):
    model = make_model(BASES["photos_vqvae2"])
    for call, *arguments in ((codes_module.validate_images, images), (codes_module.validate_codes, model, codes)):
        _, message = attempt(call, *arguments)
        assert is_one_line(message)
