"""Files of tensors: where each array must lie."""

import json
import struct

import pytest

from scoremle.errors import UserError
from scoremle.published import safetensors

FACTS = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.fixture
def written(tmp_path):
    """A file of this header, and eight bytes."""

    def write(header):
        content = json.dumps(header).encode()
        path = tmp_path / "x.safetensors"
        path.write_bytes(struct.pack("<Q", len(content)) + content + bytes(8))
        return path

    return write


@pytest.mark.parametrize(("shape", "offsets"), [([2], [4, 12]), ([0], [9, 9]), ([1], [8, 4])])
def test_a_tensor_that_lies_outside_of_its_file(shape, offsets, written):
    """It is said to be so, also of one that has no numbers; eight bytes are there."""
    with pytest.raises(UserError, match="lies outside"):
        safetensors.read(written({"a": FACTS | {"shape": shape, "data_offsets": offsets}}))


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": FACTS, "b": FACTS}, "over each other"), ([["a", FACTS]], "not an object"),
        ({name: FACTS | {"shape": [1], "data_offsets": [2, 6]} for name in "ab"}, "each other"),
    ],
)
def test_a_header_that_is_none(header, words, written):
    assert safetensors.read(written({"a": FACTS}))["a"].tolist() == [0, 0]
    with pytest.raises(UserError, match=words):
        safetensors.read(written(header))


@pytest.mark.parametrize("kind", safetensors.KINDS)
def test_a_tensor_of_each_type_is_read(kind, written):
    dtype = safetensors.KINDS[kind]
    facts = FACTS | {"dtype": kind, "shape": [8 // dtype.itemsize]}
    found = safetensors.read(written({"a": facts}))["a"]
    assert found.dtype == dtype and not found.any()


def test_a_type_that_is_not_read_is_named(written):
    with pytest.raises(UserError, match="'F4' are not"):
        safetensors.read(written({"a": FACTS, "b": FACTS | {"dtype": "F4"}}))


@pytest.mark.parametrize("notes", [["a"], {"a": 1}])
def test_notes_are_texts(notes, written):
    name = safetensors.NOTES
    assert safetensors.notes(written({name: {"a": "1"}, "b": FACTS})) == {"a": "1"}
    with pytest.raises(UserError, match="not texts"):
        safetensors.notes(written({name: notes, "b": FACTS}))
