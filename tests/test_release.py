"""What stops a release: files that are not as they are stated, metadata, versions that differ."""

import base64
import hashlib
import importlib.machinery
import importlib.util
import tomllib
import zipfile

import pytest
from helpers.places import ROOT

METADATA = """\
Name: scoremle
Version: 1.2.3
Summary: words
Requires-Python: >=3.11
License-Expression: MIT
Description-Content-Type: text/markdown

# scoremle
"""


@pytest.fixture(scope="module")
def script():
    loader = importlib.machinery.SourceFileLoader("release", str(ROOT / ".ci" / "release"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("release", loader))
    loader.exec_module(module)
    return module


def wheel(path, **changed):
    """A wheel of two files; ``changed`` after its RECORD was made, or added to it."""
    files = {"scoremle/py.typed": "", "scoremle-1.2.3.dist-info/METADATA": METADATA}
    digests = {
        name: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        for name, text in files.items()
    }
    rows = [f"{name},sha256={digest},{len(files[name])}" for name, digest in digests.items()]
    rows.append("scoremle-1.2.3.dist-info/RECORD,,")
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, **changed}.items():
            archive.writestr(name, text)
        archive.writestr("scoremle-1.2.3.dist-info/RECORD", "\n".join(rows))
    return path


def test_a_wheel_is_read_once_its_hashes_are_right(script, tmp_path):
    name, text = script.read_wheel(wheel(tmp_path / "a.whl"))
    script.check_metadata(name, text, "1.2.3")
    with pytest.raises(SystemExit, match=r"of version 1\.2\.3"):
        script.check_metadata(name, text, "1.2.4")
    with pytest.raises(SystemExit, match=r"without \['Summary'\]"):
        script.check_metadata(name, text.replace("Summary", "Words"), "1.2.3")
    with pytest.raises(SystemExit, match="no Markdown"):
        script.check_metadata(name, text.replace("markdown", "plain"), "1.2.3")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"scoremle/py.typed": "x"}, "py.typed has another hash than RECORD states"),
        ({"tests/test_a.py": ""}, r"holds \['tests/test_a.py'\]"),
    ],
)
def test_what_is_altered_or_too_much_is_named(script, tmp_path, changed, words):
    with pytest.raises(SystemExit, match=words):
        script.read_wheel(wheel(tmp_path / "a.whl", **changed))


@pytest.mark.parametrize(
    ("version", "citation", "changes", "tags", "words"),
    [
        ("1.2.3", "1.2.3", "## 1.2.3", ("", ""), ""),
        ("1.2.3", "1.2.3", "## 1.2.3", ("v1.2.3", "v1.2.3"), ""),
        ("1.2.3.dev0", "1.2.3.dev0", "## 1.2.3", ("", ""), "none of a release"),
        ("1.2.3", "1.2.2", "## 1.2.3", ("", ""), "CITATION.cff has another version"),
        ("1.2.3", "1.2.3", "## Unreleased", ("", ""), "no section 1.2.3"),
        ("1.2.3", "1.2.3", "## 1.2.3", ("v1.2.3", ""), "the tag of another commit"),
    ],
)
def test_versions_agree(script, tmp_path, monkeypatch, version, citation, changes, tags, words):
    (tmp_path / "CITATION.cff").write_text(f"type: software\nversion: {citation}\n")
    (tmp_path / "CHANGELOG.md").write_text(f"# Changes\n\n{changes}\n")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    answers = iter(tags)
    monkeypatch.setattr(script, "run", lambda *command: next(answers))
    if words:
        with pytest.raises(SystemExit, match=words):
            script.check_version(version)
    else:
        script.check_version(version)


def test_the_version_stands_twice():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
