"""What stops a release: files that are not as they are stated, metadata, versions that differ."""

import base64
import hashlib
import importlib.machinery
import importlib.util
import tarfile
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
        ({"scoremle/py.typed": "x"}, "another hash"),
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
        ("1.2.3.dev0", "1.2.3.dev0", "## 1.2.3", ("", ""), "a version of a release in pyproject"),
        ("1.2.3", "1.2.2", "## 1.2.3", ("", ""), "version 1.2.3 in CITATION.cff"),
        ("1.2.3", "1.2.3", "## Unreleased", ("", ""), "a section 1.2.3 in CHANGELOG.md"),
        ("1.2.3", "1.2.3", "## 1.2.3", ("v1.2.3", ""), "a free tag"),
    ],
)
def test_versions_agree(script, tmp_path, monkeypatch, version, citation, changes, tags, words):
    (tmp_path / "CITATION.cff").write_text(f"type: software\nversion: {citation}\n")
    (tmp_path / "CHANGELOG.md").write_text(f"# Changes\n\n{changes}\n")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    answers = iter(tags)
    monkeypatch.setattr(script, "run", lambda *command: next(answers))
    lacks = list(script.lacks_of_version(version))
    assert [lack[: len(words)] for lack in lacks] == [words] * bool(words)


def test_all_that_a_development_version_lacks_is_said_at_once(script, tmp_path, monkeypatch):
    (tmp_path / "CITATION.cff").write_text("type: software\nversion: 1.2.3.dev0\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changes\n\n## Unreleased\n")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "run", lambda *command: "")
    assert list(script.lacks_of_version("1.2.3.dev0")) == [
        "a version of a release in pyproject.toml and in CITATION.cff: 1.2.3, say",
        "a section 1.2.3 in CHANGELOG.md: rename Unreleased",
    ]
    monkeypatch.setattr(script, "run", lambda *command: " M a.py\n?? b.py\n")
    assert list(script.lacks_of_tree()) == ["a clean tree: commit or remove a.py, b.py"]


def test_an_sdist_must_build_the_same_wheel(script, tmp_path, monkeypatch):
    first, sdist = wheel(tmp_path / "a.whl"), tmp_path / "scoremle-1.2.3.tar.gz"
    with tarfile.open(sdist, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("scoremle-1.2.3/pyproject.toml"))
    for changed, fault in (({}, ""), ({"scoremle/more.py": ""}, r"more\.py")):

        def build(*command, cwd, changed=changed):
            wheel(cwd.parent / "b.whl", **changed)

        monkeypatch.setattr(script, "run", build)
        if not fault:
            script.rebuild(sdist, first)
        else:
            with pytest.raises(SystemExit, match=fault):
                script.rebuild(sdist, first)


def test_the_version_is_written_twice():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
