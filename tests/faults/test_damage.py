"""Damage at rest, at random places of every file: no wrong number comes out without a word.

The numbers of these tests stand in docs/reliability.md.
"""

import gc
import logging
import shutil
import zlib
from collections import Counter

import numpy as np
import pytest
from helpers.faults import SEED, report
from helpers.small_places import PARTS, READERS, UNSEALED, hash_at, make

from scoremle.cli import main as cli
from scoremle.cli.commands.verify import verify
from scoremle.errors import UserError

# Where an array can't be read, Orbax leaves the readers of others behind.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")


@pytest.fixture(autouse=True, scope="module")
def nothing_is_left_behind():
    yield
    gc.collect()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = make(tmp_path_factory.mktemp("pristine"))
    for reader in READERS.values():
        reader(folder)
    return folder


def flip(content, rng):
    place, bit = int(rng.integers(len(content))), 1 << int(rng.integers(8))
    return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def cut(content, rng):
    return content[: int(rng.integers(len(content)))]


def blank(content, rng):
    """A stretch that the disk has lost."""
    place = int(rng.integers(len(content)))
    lost = content[place : place + 16]
    return content[:place] + bytes(len(lost)) + content[place + len(lost) :]


def lose(content, rng):
    return None


# Of each file, one after the other.
DAMAGES = (flip, flip, flip, cut, blank, lose)


def damages(pristine, copy, places):
    """Does each damage to each file below some places, in a copy; says where and what."""
    shutil.copytree(pristine, copy)
    for file in sorted(path for path in pristine.rglob("*") if path.is_file()):
        name = str(file.relative_to(pristine))
        place = next((place for place in places if name.startswith(place)), None)
        rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
        for damage in DAMAGES if place else ():
            content = damage(file.read_bytes(), rng)
            if content is None:
                (copy / name).unlink()
            else:
                (copy / name).write_bytes(content)
            yield place, name, damage.__name__
            shutil.copyfile(file, copy / name)
            parts = pristine / "workdir" / PARTS
            shutil.copytree(parts, copy / "workdir" / PARTS, dirs_exist_ok=True)


def one_line(error):
    return "\n" not in str(error) and len(str(error)) > 20


def outcome(reader, copy, truth, caplog):
    """Was the damage refused, recovered from, or harmless? Or was something wrong given back?"""
    caplog.clear()
    try:
        found = reader(copy)
    except UserError as error:
        return "refused" if one_line(error) else "wrong"
    named = any("damaged" in record.getMessage() for record in caplog.records)
    if found == truth or found == {}:  # no results: there is no number
        return "recovered" if named else "harmless"
    before = isinstance(found, tuple) and found[1:] == (10, hash_at(10))
    return "recovered" if named and before else "wrong"


def seen(copy, name):
    """Does scoremle verify name what lies there?"""
    file = copy / name
    whole = next((p for p in file.parents if p.name.startswith("checkpoint_")), file)
    place = copy / "data" if name.startswith("data/") else whole
    return place.exists() and any(isinstance(line, str) for line in verify(place))


def test_no_damage_changes_a_number_without_a_word(pristine, tmp_path, caplog):
    copy = tmp_path / "copy"
    truths = {place: reader(pristine) for place, reader in READERS.items()}
    counts, wrong, unseen = Counter(), [], []
    with caplog.at_level(logging.WARNING, "scoremle"):
        for place, name, what in damages(pristine, copy, READERS):
            by_verify = seen(copy, name)
            found = outcome(READERS[place], copy, truths[place], caplog)
            counts[found] += 1
            if found == "wrong":
                wrong.append((name, what))
            elif found != "harmless" and what != "lose" and not by_verify:
                unseen.append((name, what))
    report("damage", counts)
    assert not wrong
    assert not unseen
    assert counts.total() >= 300 and min(counts.values()) > 20


def test_no_flipped_bit_of_results_changes_one(pristine, tmp_path):
    """Not in the name of the seal, either."""
    place = "workdir/eval/results.json"
    truth, content = READERS[place](pristine), (pristine / place).read_bytes()
    file = tmp_path / place
    file.parent.mkdir(parents=True)
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        try:
            assert READERS[place](tmp_path) == truth, bit
        except UserError as error:
            assert one_line(error), bit


def test_files_without_a_checksum_are_read_or_refused_in_a_line(pristine, tmp_path):
    counts = Counter()
    for place, name, what in damages(pristine, tmp_path / "copy", UNSEALED):
        try:
            UNSEALED[place](tmp_path / "copy")
            counts["read"] += 1
        except UserError as error:
            assert one_line(error), (name, what)
            counts["refused"] += 1
        except FileNotFoundError:
            assert what == "lose"
            counts["refused"] += 1
    report("damage where there is no checksum", counts)


def test_verify_says_that_all_is_well(pristine, capsys):
    assert cli.main(["verify", str(pristine)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"{pristine}: 17 as written, 3 readable (no checksum), 0 damaged"
