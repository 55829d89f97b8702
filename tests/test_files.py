"""Files are there whole or not at all."""

import pytest

from scoremle.files import write_atomically


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
