"""Pictures of every kind, as a model takes them: what is changed of them is said, or why not."""

import io
import struct
import sys
import zlib
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from scoremle.data.readers import decoding, pictures
from scoremle.data.readers.base import ImageReport, UnusableImage, in_levels
from scoremle.data.readers.decoding import decode_image
from scoremle.data.readers.fits import PADDED
from scoremle.data.readers.pictures import decode_folder

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)
COLOUR = np.stack([GREY, 2 * GREY, 3 * GREY], axis=-1)
ALPHA = np.full((8, 8), 255, np.uint8)
ALPHA[0] = 0


def encoded(pixels, kind="PNG", **settings):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    content = io.BytesIO()
    image.save(content, kind, **settings)
    return content.getvalue()


def of_12_bits(grey):
    """A TIFF, which Pillow does not write: one of 8 bits, of which two tags are changed."""
    bits = np.unpackbits(grey.astype(">u2")[..., None].view(np.uint8), axis=-1)[..., 4:]
    packed = np.packbits(bits).reshape(len(grey), -1)
    content = encoded(packed, "TIFF")
    for *tag, was, now in ((256, 4, packed.shape[1], grey.shape[1]), (258, 3, 8, 12)):
        content = content.replace(*(struct.pack("<HHII", *tag, 1, n) for n in (was, now)))
    return content


def png(pixels, bits, colour, transparent):
    """A PNG of a transparent value, and of few bits or of 16 and RGB: Pillow writes neither."""
    size = struct.pack(">IIBBBBB", 8, 8, bits, colour, 0, 0, 0)
    chunks = {b"IHDR": size, b"tRNS": transparent, b"IDAT": zlib.compress(pixels), b"IEND": b""}
    number = struct.Struct(">I").pack
    parts = (number(len(data)) + name + data + number(zlib.crc32(name + data))
             for name, data in chunks.items())  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def luma(colour):
    """ITU-R 601, in Pillow's fixed point."""
    red, green, blue = np.moveaxis(colour.astype(int), -1, 0)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


TRANSPOSED = Image.Exif()
TRANSPOSED[0x0112] = 5
DEEP = (GREY.astype(np.uint16) << 8) + 77
# A row of 8 pixels, 3 3 2 2 1 1 0 0 of 2 bits and 15 15 0 0 15 15 0 0 of 4.
TWO_BITS, FOUR_BITS = b"\x00\xfa\x50" * 8, b"\x00\xff\x00\xff\x00" * 8
FRAMES = [Image.fromarray(COLOUR), Image.fromarray(COLOUR[::-1].copy())]
SEEN_THROUGH = np.where(GREY == 27, 255, GREY)
WHITE = np.where(ALPHA == 255, GREY, 255)
NEARLY_GREY = [COLOUR[..., order] for order in ([0, 0, 1], [1, 0, 0])]
LOSSLESS = {"WEBP": {"lossless": True}, "TIFF": {}, "BMP": {}, "PNG": {}}


@pytest.mark.parametrize(
    ("content", "channels", "pixels", "changes"),
    [
        *((encoded(COLOUR, kind, **how), 3, COLOUR, []) for kind, how in LOSSLESS.items()),
        (encoded(GREY), 1, GREY, []),
        (encoded(COLOUR), 1, luma(COLOUR), [decoding.GREY]),
        (encoded(np.stack([GREY] * 3, axis=-1)), 1, GREY, []),  # colours that are grey
        *((encoded(colour), 1, luma(colour), [decoding.GREY]) for colour in NEARLY_GREY),
        (encoded(GREY), 3, np.stack([GREY] * 3, axis=-1), [decoding.RGB]),
        (encoded(DEEP), 1, GREY, [decoding.CUT]),
        (encoded(DEEP, "TIFF"), 1, GREY, [decoding.CUT]),
        (of_12_bits(DEEP >> 4), 1, GREY, [decoding.CUT]),
        # Pillow turns grey round as it writes 8 bits, but not 16.
        (encoded(GREY, "TIFF", tiffinfo={262: 0}), 1, GREY, []),
        (encoded(~DEEP, "TIFF", tiffinfo={262: 0}), 1, GREY, [decoding.CUT]),
        (encoded(GREY, transparency=27), 1, SEEN_THROUGH, [decoding.ON_WHITE]),
        (encoded(DEEP, transparency=(27 << 8) + 77), 1, SEEN_THROUGH,
         [decoding.CUT, decoding.ON_WHITE]),
        (encoded(DEEP, transparency=27), 1, GREY, [decoding.CUT, decoding.OPAQUE]),
        (png(TWO_BITS, 2, 0, b"\0\2"), 1, [[255, 255, 255, 255, 85, 85, 0, 0]] * 8,
         [decoding.ON_WHITE]),
        (png(FOUR_BITS, 4, 0, b"\0\1"), 1, [[255, 255, 0, 0] * 2] * 8, [decoding.OPAQUE]),
        (encoded(np.dstack([COLOUR, ALPHA | 255])), 3, COLOUR, [decoding.OPAQUE]),
        (encoded(np.dstack([GREY, ALPHA])), 1, WHITE, [decoding.ON_WHITE]),
        (encoded(Image.fromarray(COLOUR).convert("P", palette=Image.Palette.ADAPTIVE)), 3, COLOUR,
         [decoding.UNPALETTED]),
        (encoded(Image.fromarray(GREY).convert("P")), 1, GREY, [decoding.UNPALETTED]),
        (encoded(FRAMES[0], "WEBP", lossless=True, save_all=True, append_images=FRAMES[1:]), 3,
         COLOUR, [decoding.FIRST_FRAME]),
        (encoded(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]), 3, COLOUR,
         [decoding.FIRST_FRAME]),
        (encoded(Image.fromarray(255 - np.dstack([COLOUR, 255 | COLOUR[..., 0]]), "CMYK"), "TIFF"),
         3, COLOUR, ["made RGB of CMYK, without a profile of its colours"]),
        *((encoded(COLOUR.transpose(1, 0, 2).copy(), kind, exif=TRANSPOSED, **how), 3, COLOUR,
           [decoding.TURNED]) for kind, how in LOSSLESS.items() if kind != "BMP"),
        (encoded(~DEEP.T, "TIFF", tiffinfo={262: 0, 274: 5}, compression="tiff_lzw"), 1, GREY,
         [decoding.CUT, decoding.TURNED]),
    ],
)  # fmt: skip
def test_what_is_done_to_a_picture_is_said(content, channels, pixels, changes):
    found = decode_image("a", content, (8, 8, channels))
    np.testing.assert_array_equal(found.pixels, np.reshape(pixels, (8, 8, channels)))
    assert list(found.changes) == changes


@pytest.mark.parametrize("levels", [2, 4, 17, 32, 1024])
def test_grey_levels_are_bins_as_wide_as_can_be(levels):
    found = in_levels(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), levels).ravel()
    counts = np.bincount(found, minlength=levels)
    assert len(counts) == levels and counts.max() <= counts.min() + 1
    np.testing.assert_array_equal(found, np.sort(found))


def test_of_a_moving_gif_the_first_frame_is_taken():
    frames = [Image.fromarray(image) for image in (GREY, 255 - GREY)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    found = decode_image("a", content, (8, 8, 1))
    np.testing.assert_array_equal(found.pixels[..., 0], GREY)
    assert found.changes[0] == decoding.FIRST_FRAME


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"text", "not PNG"),
        (encoded(COLOUR)[:60], "can't be decoded"),
        (b"", "it is empty"),
        (encoded(GREY.astype(np.float32), "TIFF"), "16 bits"),
        (encoded(GREY[:5]), "5x8, not 8x8"),
        (png((b"\0" + bytes(48)) * 8, 16, 2, bytes(6)), "transparent"),
        (encoded(GREY, "TIFF").replace(*(struct.pack("<HHII", 259, 3, 1, n) for n in (1, 34925))),
         "a TIFF of lzma"),
    ],
)
def test_what_cannot_be_taken_has_a_reason(content, words):
    found = decode_image("a", content, (8, 8, 1))
    assert found.pixels is None and words in found.reason


def test_heic_is_read_where_its_library_is(monkeypatch):
    """The library registers HEIC with Pillow; this one stands for it, and registers nothing."""
    told = []
    library = SimpleNamespace(register_heif_opener=lambda: told.append(1))
    monkeypatch.setitem(sys.modules, "pillow_heif", library)
    monkeypatch.setattr(decoding, "_heif", decoding._heif.__wrapped__)
    monkeypatch.setattr(decoding, "FORMATS", ("PNG",))
    assert "HEIF" in decode_image("a.heic", b"text", (8, 8, 3)).reason and told == [1]


def test_other_colours_are_made_rgb_or_named():
    found = decode_image("a", encoded(Image.new("LAB", (8, 8)), "TIFF"), (8, 8, 3))
    assert found.changes == ("made RGB of LAB, without a profile of its colours",)
    with pytest.raises(UnusableImage, match="colours are La"):
        decoding._plain(Image.new("La", (8, 8)), [])


def wide(value=200):
    """Of 4x12: black, with a light square in the middle."""
    image = np.zeros((4, 12), np.uint8)
    image[:, 4:8] = value
    return image


@pytest.mark.parametrize(
    ("fit", "shape", "light", "changes"),
    [
        ("crop", (4, 4), np.ones((4, 4)), ["cropped to its centre"]),
        ("resize", (2, 2), np.ones((2, 2)), ["cropped to its centre", "shrunk"]),
        ("resize", (8, 8), np.ones((8, 8)), ["cropped to its centre", "enlarged"]),
        ("crop", (8, 8), np.ones((8, 8)), ["cropped to its centre", "enlarged"]),
        ("pad", (12, 12), np.pad(wide(1), ((4, 4), (0, 0))), [PADDED]),
        ("pad", (14, 14), np.pad(wide(1), ((5, 5), (1, 1))), [PADDED]),
    ],
)
def test_other_sizes_are_fitted_as_named(fit, shape, light, changes):
    found = decode_image("a", encoded(wide()), (*shape, 1), fit)
    np.testing.assert_array_equal(found.pixels[..., 0], 200 * light)
    assert list(found.changes) == changes


def test_a_large_picture_is_padded_whole():
    _, found, changes, _ = decode_image("a", encoded(wide()), (6, 6, 1), "pad")
    assert changes == ("shrunk", PADDED)
    assert found[:2].sum() == found[4:].sum() == 0 and found[2:4, 2:4].min() > 120


def test_each_file_has_its_line_in_order(tmp_path):
    for name, content in {
        "a.png": encoded(GREY), "b.txt": b"text", "c/d.JPG": b"\xff\xd8 broken",
        "c/e.gif": encoded(GREY, "GIF"), ".DS_Store": b"x", "f": encoded(GREY),
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    shares = []
    reports, hidden = decode_folder(tmp_path, (8, 8, 1), "", shares.append)
    assert hidden == 1 and shares == sorted(shares) and len(shares) == 3
    assert [report.name for report in reports] == ["a.png", "b.txt", "f", "c/d.JPG", "c/e.gif"]
    assert [report.pixels is not None for report in reports] == [True, False, False, False, True]
    assert reports[1] == ImageReport("b.txt", reason=pictures.UNKNOWN)
    assert "decoded" in reports[3].reason
    own = (tmp_path / "a.png").rename(tmp_path / ".a.png")  # named by the user, it is looked at
    assert [report.name for report in decode_folder(own, (8, 8, 1), "", print)[0]] == [".a.png"]


def test_a_file_that_cannot_be_read_is_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PICTURE", len(encoded(GREY)))
    (tmp_path / "a.png").write_bytes(encoded(GREY))
    (tmp_path / "b.png").write_bytes(encoded(GREY) + b"more")
    reports, _ = decode_folder(tmp_path, (8, 8, 1), "", lambda share: None)
    assert reports[0].pixels is not None
    assert reports[1].reason.startswith("refused: of ")  # without the path, which is the name


def test_missing_memory_is_no_damage(monkeypatch):
    def short(*args, **options):
        raise MemoryError

    monkeypatch.setattr(decoding.Image, "open", short)
    with pytest.raises(MemoryError):
        decode_image("a.png", encoded(GREY), (8, 8, 1))


def test_heic_takes_an_extra(monkeypatch):
    heif = decoding._heif()
    monkeypatch.setattr(decoding, "_heif", lambda: False)
    found = decode_image("a.heic", b"anything", (8, 8, 1))
    assert "pip install 'scoremle[heic]'" in found.reason
    monkeypatch.undo()
    if not heif:
        pytest.skip("needs pillow-heif")
    content = encoded(np.full((64, 64, 3), 90, np.uint8), "HEIF", quality=-1)
    found = decode_image("a.HEIC", content, (64, 64, 3))
    assert abs(found.pixels.astype(int) - 90).max() <= 1 and not found.changes


FORMATS = {
    "PNG": (".png",), "JPEG": (".jpg", ".jpeg"), "WEBP": (".webp",), "BMP": (".bmp",),
    "GIF": (".gif",), "TIFF": (".tif", ".tiff"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_is_read_whatever_its_name_says(kind):
    for ending in FORMATS[kind]:
        assert decoding.is_picture(f"a{ending}") and decoding.is_picture(f"A{ending.upper()}")
    found = decode_image("a.png", encoded(np.full((8, 8), 90, np.uint8), kind), (8, 8, 1))
    np.testing.assert_array_equal(found.pixels, 90)
    assert kind in decoding.IMAGE_FORMATS.upper()


def test_other_formats_are_not():
    assert decoding.is_picture("a.heic") and decoding.is_picture("a.HEIF")
    assert not any(map(decoding.is_picture, ("a.txt", "png", "a.png.gz", "a.npy", "a.ppm")))
    found = decode_image("a.png", encoded(GREY, "PPM"), (8, 8, 1))
    assert "not PNG, JPEG, WEBP, BMP, GIF or TIFF" in found.reason


@pytest.mark.parametrize("orientation", range(10))
def test_eight_orientations_turn_all_but_the_first(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    found = decode_image("a", encoded(GREY, exif=exif), (8, 8, 1))
    turned = 2 <= orientation <= 8
    assert found.changes == ((decoding.TURNED,) if turned else ())
    assert np.array_equal(found.pixels[..., 0], GREY) != turned


@pytest.mark.parametrize(("limit", "fine"), [(64, True), (63, False)])
def test_a_picture_may_have_as_many_pixels_as_the_limit(limit, fine, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", limit)
    for kind in ("PNG", "TIFF"):
        found = decode_image("a", encoded(GREY, kind), (8, 8, 1))
        assert (found.pixels is not None) == fine == ("bomb" not in found.reason)


@pytest.mark.parametrize(("spare", "fine"), [(0, True), (-1, False)])
def test_scans_of_a_jpeg_may_code_as_many_pixels_as_the_limit(spare, fine, monkeypatch):
    content = encoded(COLOUR, "JPEG", progressive=True)
    scans = content.count(decoding.START_OF_SCAN)
    assert scans > 5
    monkeypatch.setattr(decoding, "MAX_SCANNED", 64 * scans + spare)
    found = decode_image("a", content, (8, 8, 3))
    assert (found.pixels is not None) == fine == ("coded more than" not in found.reason)


@pytest.mark.parametrize(
    "packed", ["raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "lzma", "zstd"]
)
def test_ways_to_pack_a_tiff_that_take_no_more_memory_than_it_has(packed):
    try:
        content = encoded(GREY, "TIFF", compression=packed)
    except OSError:  # a libtiff without it
        pytest.skip(f"needs a libtiff with {packed}")
    found = decode_image("a", content, (8, 8, 1))
    if packed in ("lzma", "zstd"):
        assert f"a TIFF of {packed}" in found.reason
    else:
        np.testing.assert_array_equal(found.pixels[..., 0], GREY)


def test_a_chunk_has_512_pictures_of_one_split_or_so_many_bytes(unchecked, monkeypatch):
    image = np.zeros((2, 2, 1), np.uint8)

    def chunks(rows):
        found = pictures.chunked(rows, Mock(done=0.5))
        return [(chunk.split, len(chunk.images), len(chunk.unusable)) for chunk in found]

    def row(split, pixels=image):
        return split, "", ImageReport("a", pixels)

    assert chunks([row("train")] * 512) == [("train", 512, 0)]
    assert chunks([row("train")] * 513) == [("train", 512, 0), ("train", 1, 0)]
    both = [row("train"), row("train", None), row("test")]
    assert chunks(both) == [("train", 1, 1), ("test", 1, 0)]
    assert chunks([]) == [(None, 0, 0)]
    monkeypatch.setattr(pictures, "CHUNK_BYTES", 8)  # two pictures
    assert chunks([row(None)] * 5) == [(None, 2, 0), (None, 2, 0), (None, 1, 0)]
    assert chunks([row(None), row(None, None), row(None)]) == [(None, 2, 1)]
