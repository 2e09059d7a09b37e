"""Word vectors from text files: the three forms, what is looked up, what is refused."""

import hashlib

import numpy as np
import pytest

from tmrjax.files import DataError
from tmrjax.inputs.vocabulary import Vocabulary
from tmrjax.inputs.words import Words
from tmrjax.text.vectors import read_word_vectors

GLOVE = "the 1 2 3\nharbour 4 5 6\ntraffic -1 0 1\nlight 3 2 1\n. . . 7 8 9\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text(GLOVE)
    return path


def test_words_are_found_as_they_are_in_lower_case_and_by_their_parts(file):
    vectors = read_word_vectors(file, ["Harbour", "traffic light", "zebra", ". . ."])
    assert vectors.width == 3 and set(vectors.vectors) == {"harbour", "traffic", "light", ". . ."}
    np.testing.assert_array_equal(vectors.of("Harbour"), [4, 5, 6])
    np.testing.assert_array_equal(vectors.of("traffic light"), [1, 1, 1])
    np.testing.assert_array_equal(vectors.of(". . ."), [7, 8, 9])
    assert vectors.of("zebra") is None and vectors.of("the") is None
    assert vectors.sha256 == hashlib.sha256(GLOVE.encode()).hexdigest()


def test_a_first_line_with_counts_is_no_word(tmp_path, file):
    headed = tmp_path / "vectors.vec"
    headed.write_text("5 3\n" + GLOVE)
    one, other = (read_word_vectors(path, ["the"]) for path in (file, headed))
    np.testing.assert_array_equal(one.of("the"), other.of("the"))
    assert "5" not in other.vectors


def test_a_vocabulary_grows_by_what_has_a_vector_and_its_table_is_filled(file):
    words = Words(vocabulary=Vocabulary(("zebra", "the")))
    vectors = read_word_vectors(file, ["zebra", "the", "harbour"], most_frequent=1)
    grown = vectors.extend(words)
    assert grown.vocabulary.entries == ("zebra", "the", "harbour") and vectors.frequent == ("the",)
    table = np.full((len(grown.vocabulary), 3), 0.5, np.float32)
    filled = vectors.fill(grown.vocabulary, table)
    np.testing.assert_array_equal(filled, [[0.5] * 3, [0.5] * 3, [0.5] * 3, [1, 2, 3], [4, 5, 6]])
    assert (table == 0.5).all()
    assert vectors.origin([grown]) == {
        "name": "vectors.txt", "sha256": vectors.sha256, "width": 3, "found": 2, "of": 3
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("the 1 2 3\nharbour 4 5\n", r"vectors.txt:2: found 2 numbers behind the word; expected 3"),
        ("the 1 2 3\nharbour 4 five 6\n", r"vectors.txt:2: found .*harbour 4 five 6.*; expected a word and 3 numbers"),
        ("the 1 2 3\nharbour 4 nan 6\n", r"vectors.txt:2: found"),
        ("a 1 2 3\n", "no vector of any word"),
        ("", "no vector of any word"),
    ],
)
def test_damage_is_named_by_its_line(tmp_path, content, message):
    path = tmp_path / "vectors.txt"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_word_vectors(path, ["the", "harbour"])
    with pytest.raises(DataError, match=r"none\.txt"):
        read_word_vectors(tmp_path / "none.txt", ["the"])
