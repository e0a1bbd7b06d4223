"""Codes in another order: controls that show what the order of a map is worth."""

import numpy as np
import pytest

from kvae import data
from kvae.core.digests import digests
from kvae.core.errors import InputError
from kvae.data.dataset import Codebook
from kvae.data.numbering import NUMBERINGS, by_components, renumber, renumbered
from kvae.data.sets import tokens as module
from kvae.data.token_codebooks import write_codewords
from test_token_files import MANIFEST, write

CODEWORDS = np.random.default_rng(0).normal(size=(4, 8, 3)).astype(np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setitem(MANIFEST, "digests", digests({"codebook": CODEWORDS}))
    folder = write(tmp_path / "tokens")
    write_codewords(folder, {"codebook": CODEWORDS})
    return str(folder)


@pytest.mark.parametrize("numbering", NUMBERINGS)
def test_codes_and_codewords_are_renumbered_together(folder, numbering):
    plain, other = data.load("tokens", path=folder), data.load("tokens", path=folder, numbering=numbering)
    for split in ("train", "validation"):
        ours, theirs = (one.train if split == "train" else one.validation[split] for one in (plain, other))
        for i in range(len(ours)):
            vectors = [one.codebooks["codebook"].codewords[codes[i]["codebook"]] for one, codes in
                       ((plain, ours), (other, theirs))]  # fmt: skip
            np.testing.assert_array_equal(*vectors)
            assert ours[i]["label"] == theirs[i]["label"]
    assert (other.codebooks["codebook"].grid_shape, other.codebooks["codebook"].topology) == ((4, 8), "plane")
    assert (numbering == "as_trained") == np.array_equal(plain.train[0]["codebook"], other.train[0]["codebook"])


def test_streamed_codes_are_renumbered_too(folder, monkeypatch):
    held = data.load("tokens", path=folder, numbering="shuffled").train
    monkeypatch.setattr("kvae.data.dataset.MEMORY_BYTES", 0)
    streamed = data.load("tokens", path=folder, numbering="shuffled").train
    assert isinstance(streamed, module.TokenExamples)
    for i in range(len(held)):
        np.testing.assert_array_equal(held[i]["codebook"], streamed[i]["codebook"])


def test_each_codebook_of_a_stack_has_its_own_order():
    codewords = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
    books, numbers = renumbered({"codebook": Codebook((2, 2, 2), 6, (2, 3), "plane", codewords)}, "by_components")
    codes = np.random.default_rng(1).integers(0, 6, (5, 2, 2, 2))
    new = renumber(codes, numbers["codebook"])
    for part in range(2):
        before = codewords[part][codes[..., part]]
        np.testing.assert_array_equal(books["codebook"].codewords[part][new[..., part]], before)


def test_components_fill_the_grid_row_by_row():
    """A grid of vectors that is longest along its first axis keeps its order, up to reflections."""
    rows, columns = np.indices((4, 3))
    vectors = np.stack([10.0 * rows, columns, 0 * rows], axis=-1).reshape(12, 3)
    mixed = np.random.default_rng(0).permutation(12)
    order = mixed[by_components(vectors[mixed], (4, 3), 12)].reshape(4, 3)
    flipped = [order, order[::-1], order[:, ::-1], order[::-1, ::-1]]
    assert any(np.array_equal(one, np.arange(12).reshape(4, 3)) for one in flipped)


def test_fewer_training_rows_are_evenly_spaced(folder):
    plain, few = data.load("tokens", path=folder), data.load("tokens", path=folder, train_examples=3)
    np.testing.assert_array_equal(few.train[np.arange(3)]["codebook"], plain.train[np.array([0, 4, 8])]["codebook"])
    assert len(few.validation["validation"]) == len(plain.validation["validation"])
    with pytest.raises(InputError, match=r"dataset.train_examples is 10; .* has 9 training rows"):
        data.load("tokens", path=folder, train_examples=10)


def test_unknown_codewords_cannot_be_sorted(tmp_path):
    with pytest.raises(InputError, match=r"needs codewords; run kvae.tokenize again"):
        data.load("tokens", path=str(write(tmp_path / "tokens")), numbering="by_components")
