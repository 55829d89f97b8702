"""JSON that others wrote: what is missing or of another kind is one line with the field."""

import json
import zipfile
from dataclasses import dataclass, field
from typing import NotRequired, TypedDict

import pytest

from scoremle.errors import UserError
from scoremle.files import read_json, read_npz
from scoremle.records import Count, Error, FileName, Name, check_record


class Inner(TypedDict):
    train: int


class Form(TypedDict):
    name: str
    counts: Inner
    rate: float
    flag: bool
    size: int | tuple[int, int] | None
    shape: tuple[int, ...]
    notes: dict[str, int]
    items: list[str]
    named: dict[Name, Inner | None]
    errors: Error | list[Error]
    files: FileName
    count: Count


GOOD = {
    "name": "x", "counts": {"train": 3}, "rate": 1, "flag": False, "size": [2, 3], "shape": [],
    "notes": {"a": 1}, "items": ["b"], "named": {"a-1.b": {"train": 3}, "_": None}, "errors": [0],
    "files": "unet/a.json", "count": 0, "more": object(),
}  # fmt: skip


@pytest.mark.parametrize("size", [None, 5, [2, 3], (2, 3)])
def test_what_fits(size):
    check_record({**GOOD, "size": size}, Form, "here")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("name", 3, "name must"),
        ("counts", [1], "counts must"),
        ("counts", {}, "lacks train"),
        ("counts", {"train": 1.0}, "not 1.0"),
        ("counts", {"train": 2**33}, "not 8589934592"),
        ("counts", {"train": "x"}, "not 'x'"),
        ("rate", "1", "rate must"),
        ("rate", True, "not True"),
        ("rate", 10**400, "rate must"),
        ("flag", 1, "flag must"),
        ("size", [2], "list of .*null"),
        ("size", True, "size must be"),
        ("shape", [1, "x"], "shape must"),
        ("shape", 2, "shape must"),
        ("notes", {"a": []}, "notes: a"),
        ("named", {"../a": {}}, r"not '\.\./a'"),
        ("named", {"a": {"train": "x"}}, "a: train"),
        ("items", "abc", "items must"),
        ("items", list(range(99)), "items: 1"),
        ("named", [], "named must"),
        ("errors", -1.0, "errors .*not -1"),
        ("errors", [1, float("nan")], "errors: 2"),
        ("files", "a/../b", "files must"),
        ("files", ".a", "files must"),
        ("files", "/a", "files must"),
        ("files", "a\n", "files must"),
        ("count", -1, "count .*not -1"),
        ("count", True, "count .*not True"),
    ],
)
def test_what_does_not(name, value, words):
    with pytest.raises(UserError, match=f"^here: .*{words}"):
        check_record({**GOOD, name: value}, Form, "here")


@dataclass
class Defaults:
    name: str
    size: int = 3
    items: list[str] = field(default_factory=list)


class Open(TypedDict):
    name: str
    size: NotRequired[int]


@pytest.mark.parametrize("form", [Defaults, Open])
def test_what_has_a_default_or_says_so_may_be_missing(form):
    check_record({"name": "x"}, form, "here")
    with pytest.raises(UserError, match="lacks name"):
        check_record({"size": 3}, form, "here")
    with pytest.raises(UserError, match="size must"):
        check_record({"name": "x", "size": "3"}, form, "here")


def test_what_is_missing():
    with pytest.raises(UserError, match="lacks rate"):
        check_record({k: v for k, v in GOOD.items() if k != "rate"}, Form, "here")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000, "[]"])
def test_json_without_an_object(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"as JSON|JSON object"):
        read_json(tmp_path / "x.json")


def test_npz_whose_zip_is_odd(tmp_path):
    """Flags of encryption, of patches, and packed bytes that are damaged: no array, no error."""
    path = tmp_path / "x.npz"
    for patch in (1, 0x20, None):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.npy", json.dumps(list(range(100))))
        content = bytearray(path.read_bytes())
        if patch:
            content[content.find(b"PK\x01\x02") + 8] |= patch
            content[content.find(b"PK\x03\x04") + 6] |= patch
        else:
            content[40:50] = b"\xff" * 10
        path.write_bytes(content)
        assert read_npz(path) is None
