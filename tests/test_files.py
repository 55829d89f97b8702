"""Files are there whole or not at all."""

from pathlib import Path

import numpy as np
import pytest

from scoremle.files import read_npz, write_atomically


def test_a_new_file_takes_the_place_of_the_old_one_whose_content_stays_what_it_was(tmp_path):
    path = tmp_path / "a" / "file"
    with write_atomically(path) as temporary:
        temporary.write_text("the old one")
    with path.open() as old:
        with write_atomically(path) as temporary:
            temporary.write_text("the new one")
            assert path.read_text() == "the old one"
        assert old.read() == "the old one"
    assert path.read_text() == "the new one"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_what_fails_on_the_way_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "file"
    path.write_text("the old one")
    with pytest.raises(RuntimeError), write_atomically(path) as temporary:
        temporary.write_text("half of the")
        raise RuntimeError
    assert path.read_text() == "the old one" and list(tmp_path.iterdir()) == [path]


class Harm:
    """What a pickle of it does when it is read."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (Path.touch, (self.place,))


def test_an_npz_with_a_pickle_is_none_and_runs_nothing(tmp_path):
    harm = np.empty(1, object)
    harm[0] = Harm(tmp_path / "harm")
    np.savez(tmp_path / "x.npz", a=harm)
    assert read_npz(tmp_path / "x.npz") is None
    assert not (tmp_path / "harm").exists()
