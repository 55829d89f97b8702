"""Pieces of a source: every image once, with the index that it has for every worker."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from scoremle.data import pieces
from scoremle.data.pieces import ImageKind, piece_images, pieces_of
from scoremle.errors import UserError

SIZE = ImageKind((4, 4, 1))
PIXELS = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 1), dtype=np.uint8)


def png(pixels):
    content = io.BytesIO()
    Image.fromarray(pixels[..., 0]).save(content, "PNG")
    return content.getvalue()


def folder(place):
    for i, pixels in enumerate(PIXELS):
        (place / "abc"[i % 3]).mkdir(exist_ok=True)
        (place / "abc"[i % 3] / f"{i}.png").write_bytes(png(pixels))
    (place / "notes.txt").write_text("none")
    (place / ".hidden.png").write_bytes(b"none")
    return [0, 3, 6, 1, 4, 2, 5], list(range(7))


def tars(place):
    for shard, rows in enumerate((range(4), range(4, 7))):
        with tarfile.open(place / f"shard-{shard}.tar", "w") as archive:
            for row in rows:
                for name, content in ((f"{row}.png", png(PIXELS[row])), (f"{row}.cls", b"1")):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return list(range(7)), [0, 1, 2, 3, *(2**32 + np.arange(3))]


def arrays(place):
    np.save(place / "a.npy", PIXELS[:4])
    np.save(place / "b.npy", PIXELS[4:, ..., 0])
    return list(range(7)), [0, 1, 2, 3, *(2**32 + np.arange(3))]


def parquet(place):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for shard, rows in enumerate((PIXELS[:4], PIXELS[4:])):
        cells = [{"bytes": png(row), "path": None} for row in rows]
        pq.write_table(pa.table({"image": cells}), place / f"{shard}.parquet")
    return list(range(7)), [0, 1, 2, 3, *(2**32 + np.arange(3))]


@pytest.mark.parametrize("make", [folder, tars, arrays, parquet])
def test_each_image_once(make, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "RUN", 2)
    monkeypatch.setattr(pieces, "ROWS", 2)
    order, index = make(tmp_path)
    found = [each for piece in pieces_of(tmp_path)[::-1] for each in piece_images(piece, SIZE)]
    assert len(found) == 7
    found = dict(found)
    assert sorted(found) == index
    np.testing.assert_array_equal([found[i].pixels for i in index], PIXELS[order])
    assert len({image.name for image in found.values()}) == 7


def test_indices_do_not_depend_on_what_is_bad_or_left_out(tmp_path):
    folder(tmp_path)
    (tmp_path / "a" / "3.png").write_bytes(b"no picture")
    Image.new("L", (5, 4)).save(tmp_path / "b" / "1.png")
    (piece,) = pieces_of(tmp_path)
    index, found = zip(*piece_images(piece, SIZE, without=range(0, 7, 2)), strict=True)
    assert index == (1, 3, 5)
    assert [image.name for image in found] == ["a/3.png", "b/1.png", "c/2.png"]
    assert found[0].pixels is None and "can't be decoded" in found[0].reason
    assert found[1].pixels is None and "4x5, not 4x4" in found[1].reason
    np.testing.assert_array_equal(found[2].pixels, PIXELS[2])


def test_a_single_file(tmp_path):
    np.save(tmp_path / "x.npy", PIXELS)
    (tmp_path / "x.npy").rename(tmp_path / "x.NPY")
    (piece,) = pieces_of(tmp_path / "x.NPY")
    assert [index for index, _ in piece_images(piece, SIZE)] == list(range(7))


def test_what_is_refused(tmp_path):
    with pytest.raises(UserError, match="none of them"):
        pieces_of(tmp_path)
    arrays(tmp_path)
    with pytest.raises(UserError, match="not 5x5x1"):
        list(piece_images(pieces_of(tmp_path)[0], ImageKind((5, 5, 1))))
    folder(tmp_path)
    with pytest.raises(UserError, match="2 arrays"):
        pieces_of(tmp_path)


def test_a_picture_that_is_gone_is_a_report_and_the_others_are_read(tmp_path):
    folder(tmp_path)
    (piece,) = pieces_of(tmp_path)
    (tmp_path / "a" / "3.png").unlink()
    found = dict(piece_images(piece, SIZE))
    assert len(found) == 7 and [i for i, image in found.items() if image.pixels is None] == [1]
    assert "a/3.png" in found[1].reason
