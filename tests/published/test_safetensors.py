"""Files of tensors: where each array must lie."""

import json
import struct

import pytest

from scoremle.errors import UserError
from scoremle.published import safetensors


@pytest.mark.parametrize(("shape", "offsets"), [([2], [4, 12]), ([0], [9, 9]), ([1], [8, 4])])
def test_a_tensor_that_lies_outside_of_its_file(shape, offsets, tmp_path):
    """It is said to be so, also of one that has no numbers; eight bytes are there."""
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(UserError, match="lies outside"):
        safetensors.read(path)
