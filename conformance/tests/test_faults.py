"""Each planted fault is found and named, and nothing else is; what is honest passes."""

import ast
from pathlib import Path

import numpy as np
import pytest
from scoremle_conformance import sample_library
from scoremle_conformance.adapter import Adapter, Answer
from scoremle_conformance.adapters.sample import Sample
from scoremle_conformance.checks import CHECKS, FAIL, NOT_APPLICABLE, PASS
from scoremle_conformance.report import examined, verdict
from scoremle_conformance.signatures import SIGNATURES

NAMES = {
    "summed probes": "probes summed and not averaged",
    "fresh probes": "a new probe at each right-hand side under an adaptive solver",
    "no constant": "the constant of bits/dim missing (+ 7 for 256 levels)",
    "no entropy": "entropy of the dequantization missing",
    "no log K": "- log K missing",
    "last batch": "last batch dropped",
    "labels": "labels off by one",
    "clipped": "clipped denoiser",
    "reversed": "times reversed",
    "prior": "prior of the wrong scale",
    "wrong variable": "divergence of the wrong variable",
    "float16": "float16 accumulation",
}


def named(adapter):
    return [fault.name for fault in examined(adapter, quick=True).faults]


def test_there_are_twelve():
    assert len(NAMES) == 12 and set(NAMES) == set(sample_library.FAULTS)
    assert list(NAMES.values()) == [signature.name for signature in SIGNATURES][:12]


@pytest.mark.parametrize(
    "fault",
    [pytest.param(name, marks=[pytest.mark.long] * (i % 2)) for i, name in enumerate(NAMES)],
)
def test_a_planted_fault_is_named(fault):
    assert named(Sample(fault)) == [NAMES[fault]]


def test_the_honest_library_passes_everything_that_it_declares():
    report = examined(Sample(), quick=True)
    failed = [case for case in report.cases if case.verdict == FAIL]
    absent = [case.name for case in report.cases if case.verdict == NOT_APPLICABLE]
    assert not failed and not report.faults
    assert absent == ["error of the solver"]
    assert all(verdict(report.of(check)).startswith(PASS) for check in CHECKS)


def test_the_library_and_its_examiner_know_nothing_of_each_other():
    folder = Path(sample_library.__file__).parent
    assert "scoremle_conformance" not in (folder / "sample_library.py").read_text()
    for name in ("checks.py", "signatures.py", "subjects.py", "fields.py"):
        tree = ast.parse((folder / name).read_text())
        imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not any("sample" in str(module) for module in imported)


def test_a_scale_that_is_off_by_a_thousandth_is_seen():
    class Shrunk(Sample):
        networks = property(lambda self: [("straight", "velocity")])

        def log_prob(self, field, x, ask):
            return super().log_prob(field, 0.999 * x, ask)

    cases = examined(Shrunk(), quick=True).of("value")
    assert {case.name.split(",")[0] for case in cases if case.verdict == FAIL} >= {"far Gaussian"}


class Changed(Sample):
    """The honest library, whose answers are changed afterwards."""

    def log_prob(self, field, x, ask):
        return Answer(self.changed(super().log_prob(field, x, ask).log_prob, field))


def test_a_missing_linear_part_is_named():
    class Changed_(Changed):
        def changed(self, found, field):
            ends = [field.path.scales(np.float64(t)).alpha for t in (0.001, field.path.stop)]
            return found - field.dims * np.log(ends[1] / ends[0]) * (field.path.name == "vp")

        networks = property(lambda self: [("vp", "eps")])

    assert named(Changed_()) == ["divergence of the wrong variable"]


def test_a_gradient_of_the_prior_alone_is_named():
    class Detached(Sample):
        can = frozenset({"exact", "gradient"})
        networks = property(lambda self: [("vp", "velocity")])

        def gradient(self, field, x):
            z, h = x, (field.path.stop - field.path.start) / 2000
            for i in range(2000):
                z = z + h * field(z, field.path.start + (i + 0.5) * h)
            return -z

    assert named(Detached()) == ["gradient that does not pass through the solver"]


@pytest.mark.parametrize("error", [0.2, np.nan])
def test_an_unknown_fault_is_told_as_such(error):
    class Off(Changed):
        def changed(self, found, field):
            return found + error

    assert named(Off()) == ["not named"]


def test_what_an_adapter_raises_fails_and_is_told():
    class Broken(Sample):
        def log_prob(self, field, x, ask):
            raise RuntimeError("out of order")

    report = examined(Broken(), quick=True)
    assert all(case.verdict != PASS for case in report.cases if case.check == "value")
    assert "RuntimeError: out of order" in report.cases[0].found.words


def test_what_is_absent_does_not_count_as_passed():
    class Little(Sample):
        can = frozenset({"exact"})
        networks = property(lambda self: [("vp", "eps")])

    report = examined(Little(), quick=True)
    verdicts = {check: verdict(report.of(check)) for check in CHECKS}
    assert verdicts.pop("value") == "pass 8/8" and verdicts.pop("batch") == "pass 1/1"
    assert set(verdicts.values()) == {NOT_APPLICABLE}


def test_what_has_random_probes_alone_is_not_asked_for_mixtures():
    class Random(Sample):
        can = frozenset({"probes"})
        networks = property(lambda self: [("vp", "eps")])

    report = examined(Random(), quick=True)
    assert not report.faults
    assert [c.name.split(",")[0] for c in report.of("value") if c.verdict != PASS] == ["mixture"]


def test_an_ability_that_there_is_not_is_refused():
    class Odd(Adapter):
        name, can = "odd", frozenset({"magic"})

    with pytest.raises(ValueError, match="odd declares unknown abilities: magic"):
        Odd()
