"""What scores say of themselves: in a line, as a table of a notebook, as a table of pandas."""

import re
import sys
from dataclasses import replace

import numpy as np
import pytest

import scoremle

BPD = np.asarray([[2.0, 4.0, 6.0], [4.0, 4.0, 8.0]])  # of two passes over three images


def scores(bpd=BPD, solver_error=0.25):
    errors = {"probe_stderr": np.full(bpd.shape, 0.5),
              "solver_error": np.full(bpd.shape, solver_error)}  # fmt: skip
    return scoremle.Scores.of_passes({"bpd": bpd, **errors}, dims=10)


def cells(html):
    """The texts of each row of a table's body."""
    body = html[html.index("<tbody>") :]
    return [re.findall("<td>(.*?)</td>", row) for row in re.findall("<tr>.*?</tr>", body)]


def test_scores_are_of_all_passes():
    """The standard error is that of the mean of the passes, with one degree of freedom less."""
    values = {"bpd": [[1.0, 3.0], [3.0, 3.5]], "probe_stderr": [[3.0, 0.0], [4.0, 0.2]],
              "solver_error": [[0.1, 0.2], [0.3, 0.2]]}  # fmt: skip
    found = scoremle.Scores.of_passes({k: np.array(rows) for k, rows in values.items()}, dims=4)
    np.testing.assert_allclose(found.bpd, [2, 3.25])
    np.testing.assert_allclose(found.log_prob, [-8 * np.log(2), -13 * np.log(2)])
    np.testing.assert_allclose(found.stderr, [1, 0.25])
    np.testing.assert_allclose(found.probe_stderr, [2.5, 0.1])
    np.testing.assert_allclose(found.solver_error, [0.2, 0.2])


def test_a_line_has_the_mean_and_its_errors():
    """Means 3, 4, 7: sd 2.0817, over sqrt 3 1.202. Passes apart by 2, 0, 2: errors 1, 0, 1."""
    assert repr(scores()) == (
        "Scores(3 images: mean 4.667 +- 1.202 bits/dim; one image +- 0.816; the solver's"
        " error 0.25 in the median; that of 3 above 0.01: give a tolerance, or a solver of more"
        " steps)"
    )
    assert "(3 images: mean 4.000 +- 1.155 bits/dim; the" in repr(scores(BPD[:1]))
    assert "(1 image: mean 3.000 bits/dim; one image +- 1.000; " in repr(scores(BPD[:, :1]))
    assert repr(scores(BPD[:, :2])).startswith("Scores(2 images: mean 3.500 +- 0.500 bits/dim")
    assert repr(scores(BPD[:, :0])) == "Scores(0 images)"
    assert "solver" not in repr(scores(solver_error=0.0))
    assert repr(replace(scores(), estimator="a bound")).endswith("steps; a bound)")
    assert "the solver's error is unknown)" in repr(scores(solver_error=np.nan))


def test_a_notebook_shows_both_ends():
    html = scores()._repr_html_()
    assert "<th scope=col>log_prob, nats</th><th scope=col>bpd, bits/dim</th>" in html
    first = f"{-30 * np.log(2):.1f}"
    assert cells(html)[0] == ["0", first, "3.000", "1.000", "0.354", "0.250"]
    many = cells(scores(np.arange(40.0).reshape(1, 40))._repr_html_())
    assert [row[0] for row in many] == [*"01234", "...", *map(str, range(35, 40))]
    assert len({len(row) for row in many}) == 1
    all_of_ten = cells(scores(np.arange(10.0).reshape(1, 10))._repr_html_())
    assert [row[0] for row in all_of_ten] == [*"0123456789"]


def test_text_of_others_is_escaped_in_a_table():
    html = scoremle.terminal.html_table(("a<b",), [("<script>",)], "c&d")
    assert "a&lt;b" in html and "&lt;script&gt;" in html and "c&amp;d" in html
    assert "<script>" not in html


def test_a_table_of_pandas():
    pandas = pytest.importorskip("pandas")
    table = scores().to_pandas()
    assert isinstance(table, pandas.DataFrame) and list(table) == [
        "log_prob", "bpd", "stderr", "probe_stderr", "solver_error"
    ]  # fmt: skip
    np.testing.assert_array_equal(table["bpd"], [3, 4, 7])


def test_without_pandas_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(scoremle.UserError, match=r"pip install 'scoremle\[pandas\]'"):
        scores().to_pandas()
