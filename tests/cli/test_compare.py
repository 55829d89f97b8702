"""The command that compares two models on the same images."""

import csv
import json
import tracemalloc

import numpy as np
import pytest
from helpers.reported import CORRECTED, result

from scoremle.cli import main as cli
from scoremle.cli.commands import compare as command
from scoremle.experiment import score_table

RNG = np.random.default_rng(0)
# Images differ by far more than models do.
A = 3 + RNG.normal(size=(2, 50))
B = A - 0.1 + 0.02 * RNG.normal(size=(2, 50))
DIFFERENCE = (B - A).mean(axis=0)


def facts(checkpoint: int, **changes) -> dict:
    known = {"metric": "bpd", "data_hash": "same", "passes": 2, "images": 50,
             "mean_solver_error": 0.001}  # fmt: skip
    return result("exact", A, checkpoint, **known | changes)


def evaluated(folder, values, checkpoint=1, kind="exact", arrays=None, **changes):
    """An evaluation of one checkpoint, beside what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    name, path = f"{kind}_test_ckpt_{checkpoint}", folder / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {"checks_test_ckpt_1": []}
    results[name] = facts(checkpoint, **changes)
    path.write_text(json.dumps(results))
    np.savez(folder / f"{name}.npz", bpd=values, **(arrays or {}))


def compare(capsys, *arguments):
    code = cli.main(["compare", *map(str, arguments)])
    return code, *capsys.readouterr()


@pytest.fixture
def both(tmp_path):
    evaluated(tmp_path / "a" / "eval", A)
    evaluated(tmp_path / "b" / "eval", B + 5, checkpoint=2)
    evaluated(tmp_path / "b" / "eval", B, checkpoint=10)  # the newest counts
    return tmp_path


def test_the_difference_is_that_of_each_image(both, capsys):
    code, out, _ = compare(capsys, both / "a", both / "b" / "eval", "--json")
    assert code == 0
    (found,) = json.loads(out).values()
    error = DIFFERENCE.std(ddof=1) / np.sqrt(50)
    assert found["difference"] == pytest.approx(DIFFERENCE.mean())
    assert found["stderr"] == pytest.approx(error)
    assert error < 0.01 < A.std() / np.sqrt(50)  # unpaired, nothing could be told
    assert (found["a"], found["b"]) == (pytest.approx(A.mean()), pytest.approx(B.mean()))
    code, out, _ = compare(capsys, both / "a", both / "b")
    assert code == 0
    row = next(line for line in out.splitlines() if line.startswith("exact_test")).split()
    assert row[1:6] == [f"{A.mean():.4f}", f"{B.mean():.4f}", f"{DIFFERENCE.mean():.4f}",
                        f"{error:.4f}", "50"]  # fmt: skip


def test_a_small_difference_is_printed_in_the_digits_of_its_error(tmp_path, capsys):
    """Means that agree in four decimals have a difference with an error below them."""
    evaluated(tmp_path / "a" / "eval", A)
    evaluated(tmp_path / "b" / "eval", A + (B - A) / 1000)
    gap, error = DIFFERENCE.mean() / 1000, DIFFERENCE.std(ddof=1) / np.sqrt(50) / 1000
    _, out, _ = compare(capsys, tmp_path / "a", tmp_path / "b")
    row = next(line for line in out.splitlines() if line.startswith("exact_test")).split()
    assert row[3:5] == [f"{gap:.6f}", f"{error:.6f}"] and float(row[4]) > 0


def test_means_are_corrected_for_the_solver_as_in_the_results(tmp_path, capsys):
    """Corrects one of the two: by -0.00133, with a standard error over images."""
    correction = 0.0014 * RNG.normal(size=50)
    correction += -0.00133 - correction.mean()
    arrays = {"correction": np.stack([correction] * 2)}
    evaluated(tmp_path / "a" / "eval", A)
    evaluated(tmp_path / "b" / "eval", B, arrays=arrays, **CORRECTED)
    _, out, _ = compare(capsys, tmp_path / "a", tmp_path / "b", "--json")
    (found,) = json.loads(out).values()
    assert found["a"] == pytest.approx(A.mean())
    assert found["b"] == pytest.approx(B.mean() - 0.00133)
    assert found["difference"] == pytest.approx(DIFFERENCE.mean() - 0.00133)
    error = (DIFFERENCE + correction).std(ddof=1) / np.sqrt(50)
    assert found["stderr"] == pytest.approx(error)
    _, out, _ = compare(capsys, tmp_path / "b", tmp_path / "a", "--json")
    (back,) = json.loads(out).values()
    assert (back["a"], back["difference"]) == (found["b"], pytest.approx(-found["difference"]))


def test_the_newest_checkpoint_alone_is_compared(both, capsys):
    for place, number in (("a", 1), ("b", 9)):
        evaluated(both / place / "eval", A, kind="bound", checkpoint=number)
    _, out, _ = compare(capsys, both / "a", both / "b", "--json")
    assert [*json.loads(out)] == ["exact_test"]


def test_one_that_was_trained_on_others_is_compared_on_the_same_images(tmp_path, capsys):
    """Its results on them have names of their own, beside those on its own."""
    evaluated(tmp_path / "a" / "eval", A)
    evaluated(tmp_path / "b" / "eval", B + 5, data_hash="other")
    path = tmp_path / "b" / "eval"
    results = json.loads((path / "results.json").read_text())
    results["exact_test_of_0123abcd_ckpt_1"] = facts(1)
    (path / "results.json").write_text(json.dumps(results))
    np.savez(path / "exact_test_of_0123abcd_ckpt_1.npz", bpd=B)
    for first, second, sign in (("a", "b", 1), ("b", "a", -1)):
        code, out, _ = compare(capsys, tmp_path / first, tmp_path / second, "--json")
        assert code == 0
        assert json.loads(out)["exact_test"]["difference"] == pytest.approx(
            sign * DIFFERENCE.mean()
        )


def test_each_data_set_that_both_were_measured_on_is_compared(tmp_path, capsys):
    """Whatever the order of the results; with the hash where names would be the same."""
    of_others = "exact_test_of_0123abcd_ckpt_1"
    for name, others_first in (("a", False), ("b", True)):
        path = tmp_path / name / "eval"
        evaluated(path, A if name == "a" else B)
        results = json.loads((path / "results.json").read_text())
        extra = {of_others: facts(1) | {"data_hash": "other"}}
        results = extra | results if others_first else results | extra
        (path / "results.json").write_text(json.dumps(results))
        np.savez(path / f"{of_others}.npz", bpd=A + 1)
    for first, second, sign in (("a", "b", 1), ("b", "a", -1)):
        _, out, _ = compare(capsys, tmp_path / first, tmp_path / second, "--json")
        found = {kind: facts["difference"] for kind, facts in json.loads(out).items()}
        assert found == {
            "exact_test": pytest.approx(sign * DIFFERENCE.mean()), "exact_test_of_0123abcd": 0
        }


def test_single_files(both, capsys, tmp_path):
    files = both / "a/eval/exact_test_ckpt_1.npz", both / "b/eval/exact_test_ckpt_2.npz"
    code, out, _ = compare(capsys, *files, "--json")
    assert code == 0
    assert json.loads(out)["exact_test"]["difference"] == pytest.approx(DIFFERENCE.mean() + 5)
    for name, values in (("a.csv", A[0]), ("b.csv", B[0])):
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("image", "log_prob", "bpd", "stderr", "probe_stderr", "solver_error"))
            writer.writerows((f"{i}.png", -9, x, 0.1, 0.1, 0.2) for i, x in enumerate(values))
    with (tmp_path / "a.csv").open("w", newline="") as file:  # as of now: with what was left out
        writer = csv.writer(file)
        writer.writerow(("bpd", "file", "solver_error", "note"))
        writer.writerows((x, f"{i}.png", 0.2, "") for i, x in enumerate(A[0]))
        writer.writerow(("", "notes.txt", "", "not scored: no picture"))
    code, out, _ = compare(capsys, tmp_path / "a.csv", tmp_path / "b.csv", "--json")
    found = json.loads(out)["scores"]
    assert found["difference"] == pytest.approx((B[0] - A[0]).mean())
    assert found["a_solver_error"] == pytest.approx(0.2)


def test_tables_of_other_pictures_under_the_same_names(capsys, tmp_path):
    """Images of an array have numbers for names: what they take as PNG tells them apart."""
    for name, pngs in (("a", ("7.12", "6.6")), ("coarse", ("7", "6.65")), ("b", ("7.1", "5.2"))):
        rows = "".join(f"3,{i},0.1,{png}\n" for i, png in enumerate(pngs))
        (tmp_path / f"{name}.csv").write_text(f"bpd,file,solver_error,png_bpd\n{rows}")
    assert compare(capsys, tmp_path / "a.csv", tmp_path / "coarse.csv")[::2] == (0, "")
    code, _, err = compare(capsys, tmp_path / "a.csv", tmp_path / "b.csv")
    words = "1 of 2 images take other bits/dim as PNG in A than in B: are these the same images"
    assert code == 0 and words in err and err.count("\n") == 1


def test_the_same_pictures_may_come_in_another_order(capsys, tmp_path):
    """As a folder and a tar of it list them; the names of an array are their places."""
    rows = {"z.png": "3,{},0.1,7.1", "a/2.png": "4,{},0.1,6.5", "a/3.png": "6,{},0.1,5.2"}
    for table, names, start in (("a", [*rows], ""), ("b", sorted(rows), "./")):
        lines = "\n".join(rows[name].format(start + name) for name in names)
        (tmp_path / f"{table}.csv").write_text(f"bpd,file,solver_error,png_bpd\n{lines}\n")
    code, out, err = compare(capsys, tmp_path / "a.csv", tmp_path / "b.csv", "--json")
    assert (code, err) == (0, "") and json.loads(out)["scores"]["stderr"] == 0
    (tmp_path / "b.csv").write_text((tmp_path / "b.csv").read_text().replace("a/3", "a/4"))
    code, _, err = compare(capsys, tmp_path / "a.csv", tmp_path / "b.csv")
    assert code == 2 and "not of the same images" in err and "z.png and a/2.png" in err


def test_a_wide_table_takes_memory_by_its_bytes(capsys, tmp_path):
    names = "".join(f",c{i}" for i in range(5000))
    (tmp_path / "a.csv").write_text(f"bpd,file,solver_error{names}\n" + "3,x,0.1\n" * 2000)
    tracemalloc.start()
    code, _, err = compare(capsys, tmp_path / "a.csv", tmp_path / "a.csv")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (code, err) == (0, "") and most < 10e6


def test_what_is_known_of_an_evaluation_may_be_nothing(both, capsys):
    """A file of values beside no records, and a table of the bound, which has no solver."""
    (both / "a/eval/results.json").write_text('{"exact_test_ckpt_1": null}')
    (both / "bound.csv").write_text("bpd,file,solver_error\n3,1.png,nan\n4,2.png,nan\n")
    for place in ("a/eval/exact_test_ckpt_1.npz", "bound.csv"):
        code, out, _ = compare(capsys, both / place, both / place, "--json")
        (found,) = json.loads(out).values()
        assert code == 0 and found["difference"] == 0 and found["a_solver_error"] is None


def test_a_bound_and_an_exact_value_are_named(both, capsys):
    (both / "bound.csv").write_text("bpd,file,solver_error\n3,1.png,nan\n4,2.png,nan\n")
    (both / "exact.csv").write_text("bpd,file,solver_error\n3,1.png,0.1\n4,2.png,0.1\n")
    for names, without in (("exact bound", "B"), ("bound exact", "A")):
        code, _, err = compare(capsys, *(both / f"{name}.csv" for name in names.split()))
        assert code == 0 and f"{without} has" in err
    assert compare(capsys, both / "bound.csv", both / "bound.csv")[2] == ""
    for name, words in (("bound", "a bound; 2 passes"), ("exact", "exact; 4 passes")):
        (both / f"{name}.csv").write_text(
            f"bpd,file,solver_error,estimator\n3,1.png,0.1,{words}\n4,2.png,0.1,{words}\n"
        )
    code, _, err = compare(capsys, both / "bound.csv", both / "exact.csv")
    assert code == 0 and "B is exact" in err
    assert compare(capsys, both / "exact.csv", both / "exact.csv")[2] == ""


def test_a_table_of_a_bound_has_no_error_of_a_solver(capsys, tmp_path):
    """As it is written; and of the ODE the error may be as small as is written."""
    for name, error in (("bound", 0.0), ("ode", 1e-9)):
        row = score_table.ScoreRow(
            "1.png", bpd=3.0, error=0.1, probe_stderr=0.1, solver_error=error
        )
        score_table.write_csv(
            tmp_path / f"{name}.csv", [row, row], dims=10, reference=0, estimator=name
        )
    _, out, _ = compare(capsys, tmp_path / "bound.csv", tmp_path / "ode.csv", "--json")
    (found,) = json.loads(out).values()
    assert (found["a_solver_error"], found["b_solver_error"]) == (None, 0)


def test_what_cannot_be_compared(both, capsys, tmp_path):
    evaluated(tmp_path / "other", B, data_hash="other")
    evaluated(tmp_path / "few", B[:, :40], images=40)
    evaluated(tmp_path / "bound", B, kind="bound")
    evaluated(tmp_path / "loss", B, metric="loss")
    (tmp_path / "x.csv").write_text("image,bpd\n1.png,x\n")
    (tmp_path / "y.csv").write_bytes(b"bpd,file\n\xff\xfe,\n")
    (tmp_path / "z.csv").write_text(f"bpd,file\n1,{'z' * 200_000}\n")
    (tmp_path / "png.csv").write_text("bpd,file,solver_error,png_bpd\n1,a,0.1,much\n")
    (tmp_path / "none.csv").write_text("bpd,file,solver_error\n")
    (tmp_path / "nan.csv").write_text("bpd,file,solver_error\nnan,1.png,0.1\n")
    evaluated(tmp_path / "nan", B * np.inf)
    evaluated(tmp_path / "flat", B[0])
    evaluated(tmp_path / "text", B.astype(str))
    evaluated(tmp_path / "typed", B, checkpoint="1")
    evaluated(tmp_path / "altered", B)
    path = tmp_path / "altered/results.json"
    path.write_text(json.dumps({"exact_test_ckpt_1": facts(1) | {"seal": "0" * 64}}))
    for place, words in (
        ("other", "exact_test: A and B are not of the same images (50 and 50)"),
        ("few", "exact_test: A and B are not of the same images (50 and 40)"),
        ("bound", f"nothing was measured of both: {both / 'a'} has exact_test; "),
        ("loss", "nothing was measured of both: "),
        ("x.csv", "x.csv is not a table of images"),
        ("y.csv", "y.csv is not a table of images"),
        ("z.csv", "z.csv is not a table of images"),
        ("png.csv", "png.csv is not a table of images"),
        ("none.csv", "none.csv has no bits/dim of images, or some that are not finite numbers"),
        ("nan.csv", "nan.csv has no bits/dim of images, or some that are not finite numbers"),
        ("nan", "exact_test_ckpt_1.npz: bpd has no finite number for each of 50 images"),
        ("flat", "exact_test_ckpt_1.npz has no bits/dim of images"),
        ("text", "exact_test_ckpt_1.npz has no bits/dim of images"),
        ("typed", "checkpoint must be a whole number of at least 0, not '1'"),
        ("altered", "exact_test_ckpt_1 is not as it was written"),
        ("nowhere", "no folder or file"), ("", "holds no results: "),
    ):
        code, out, err = compare(capsys, both / "a", tmp_path / place)
        assert code == 2 and out == "" and words in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("7.12", "7.13", True), ("7.12", "7.14", False), ("7", "7.9", True), ("7", "8.1", False),
        ("7.1", "7.19", True), ("7.10", "7.1", True),
    ],
)  # fmt: skip
def test_numbers_of_few_digits_may_be_one(one, other, same):
    pairs = [(text, float(text)) for text in (one, other)]
    assert command._agree(*pairs) == command._agree(*pairs[::-1]) == same


def test_what_is_not_known_of_a_difference_is_said():
    facts = {"a": 1.0, "b": 2.0, "difference": 1.0, "stderr": None, "images": 1,
             "a_solver_error": None, "b_solver_error": 0.00123}  # fmt: skip
    assert command._in_words(facts) == [
        "1.0000", "2.0000", "+1.0000", "not measured", "1", "", "0.00123"
    ]  # fmt: skip
