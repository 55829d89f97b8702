"""The list of wrong changes fits today's source: each old text is there once.

That the tests see the changes is for ``make mutants``, which takes hours.
"""

from collections import Counter

import pytest
from helpers.mutants import CHANGES, SEEN_BY
from helpers.places import ROOT


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: f"{change[0]}: {change[1][:30]}")
def test_a_change_applies(change):
    file, old, new, *tests = change
    assert (ROOT / "scoremle" / file).read_text().count(old) == 1
    assert old != new
    for name in (tests[0] if tests else SEEN_BY[file]).split():
        assert (ROOT / "tests" / name).is_file()


def test_there_are_many_and_each_once():
    assert len(CHANGES) >= 150
    assert max(Counter(change[:3] for change in CHANGES).values()) == 1
    assert {change[0] for change in CHANGES if len(change) == 3} == set(SEEN_BY)
