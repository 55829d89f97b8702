"""Each planted fault is found and named, and nothing else is; what is honest passes."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scoremle_conformance import sample_library
from scoremle_conformance.adapter import ABILITIES, Adapter, Answer
from scoremle_conformance.adapters.sample import Sample
from scoremle_conformance.checks import CHECKS, FAIL, NOT_APPLICABLE, PASS
from scoremle_conformance.report import examined, verdict
from scoremle_conformance.sample_library import Settings, log_prob
from scoremle_conformance.signatures import SIGNATURES
from scoremle_conformance.subjects import log_normal

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
    "detached": "gradient that does not pass through the solver",
    "shared probe": "one probe for a batch",
    "scaling": "log-determinant of a scaling missing, or of the wrong sign",
    "not standardised": "standardisation forgotten",
    "no 2 pi": "constant of the prior dropped",
    "weights": "density of the dequantization added and not subtracted",
    "same noise": "one noise for all draws",
    "scaled twice": "pixels scaled twice",
}
QUICK = ("reversed",)


def named(adapter):
    return [fault.name for fault in examined(adapter, quick=True).faults]


def test_there_are_twenty():
    assert len(NAMES) == 20 and set(NAMES) == set(sample_library.FAULTS)
    assert list(NAMES.values()) == [signature.name for signature in SIGNATURES][:20]


@pytest.mark.parametrize(
    "fault",
    [pytest.param(name, marks=[pytest.mark.long] * (name not in QUICK)) for name in NAMES],
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


def test_a_seed_that_is_not_used_is_noticed():
    class Seedless(Sample):
        can = frozenset({"probes"})

        def log_prob(self, field, x, ask):
            return super().log_prob(field, x, replace(ask, seed=0))

    (case,) = examined(Seedless(), quick=True).of("variance")
    assert case.verdict == FAIL and "not drawn anew" in case.found.words
    (case,) = examined(Sample(), quick=True).of("variance")
    assert case.verdict != FAIL


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


def test_a_constant_of_images_is_noticed_in_the_quick_suite():
    class Off(Sample):
        def log_prob_images(self, field, images, kind, ask):
            return super().log_prob_images(field, images, kind, ask) + 0.003 * kind.dims

    report = examined(Off(), quick=True)
    assert {case.verdict for case in report.of("images")} == {PASS, FAIL}


def test_noise_that_no_draw_explains_does_not_widen_the_limit():
    class Noisy(Sample):
        can = frozenset({"exact", "images"})

        def log_prob_images(self, field, images, kind, ask):
            found = super().log_prob_images(field, images, kind, ask)
            return found + np.random.default_rng(0).normal(size=len(found))

    case, *_ = examined(Noisy(), quick=True).of("images")
    assert case.verdict == FAIL


VELOCITY = {  # of the flow x' = f x - g^2 score / 2
    "the score twice": lambda own, linear: 2 * own - linear,
    "half of the score": lambda own, linear: (own + linear) / 2,
}


FACTORS = {"the sign": -1, "half of the trace": 0.5}


@pytest.mark.parametrize("fault", [*VELOCITY, *FACTORS, "1 - t"])
def test_other_faults_of_flow_and_divergence_are_named(fault):
    class Wrong(Sample):
        networks = property(lambda self: [("vp", "velocity")])
        can = frozenset({"exact", "noise"})

        def log_prob(self, field, x, ask):
            path, subject = field.path, field.subject

            def network(y, t):
                if fault == "1 - t":
                    return field(y, path.start + path.stop - t)
                at = path.scales(np.float64(t))
                if fault in VELOCITY:
                    return VELOCITY[fault](field(y, t), at.d_alpha / at.alpha * y)
                return field(y, t)

            found = log_prob(network, "velocity", path, x, Settings())[0]
            if fault in FACTORS and subject.single:
                found = found + (FACTORS[fault] - 1) * subject.trace_part(path)
            return Answer(found)

    of_trace = "divergence of the wrong sign, or by a factor"
    of_flow = "flow of another score or time"
    assert named(Wrong()) == [of_trace if fault in FACTORS else of_flow]


class Unsolved(Sample):
    """Gives back the start of a solve in 32 dimensions, and takes Euler's steps in fewer."""

    can = frozenset({"exact", "steps"})
    networks = property(lambda self: [("straight", "velocity")])

    def log_prob(self, field, x, ask):
        path = field.path
        if field.dims == 32:
            return Answer(log_normal(x, 0, path.prior_std**2))
        length = (path.stop - path.start) / (ask.steps or 1)

        def network(y, t):
            begun = np.floor((t - path.start) / length + 1e-9)
            return field(y, path.start + begun * length if ask.steps else t)

        return Answer(log_prob(network, "velocity", path, x, self._settings(ask))[0])


def test_faults_of_a_solver_are_named_side_by_side():
    unsolved, low = "solves that give back their start", "an order below the method's"
    assert named(Unsolved()) == [unsolved, low]


def test_steps_that_help_less_than_the_method_says_are_named():
    class Low(Sample):
        networks = property(lambda self: [("vp", "eps")])
        can, order = frozenset({"exact", "steps"}), 8.0

    assert named(Low()) == ["an order below the method's"]


@pytest.mark.parametrize("error", [pytest.param(0.2, marks=pytest.mark.long), np.nan])
def test_an_unknown_fault_is_told_as_such(error):
    class Off(Changed):
        def changed(self, found, field):
            return found + error

    assert named(Off()) == ["not named"]


def test_what_an_adapter_raises_fails_and_is_printed():
    class Broken(Sample):
        def log_prob(self, field, x, ask):
            raise RuntimeError("out of order")

    report = examined(Broken(), quick=True)
    assert all(case.verdict != PASS for case in report.cases if case.check == "value")
    assert "out of order" in report.cases[0].found.words


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


def test_no_density_at_a_noise_is_asked_of_what_declares_none():
    class Clean(Sample):
        can = frozenset(ABILITIES) - {"noise", "solver error"}
        networks = property(lambda self: [("straight", "eps")])

    cases = examined(Clean(), quick=True).cases
    assert {case.verdict for case in cases} == {NOT_APPLICABLE}


def test_an_ability_that_there_is_not_is_refused():
    class Odd(Adapter):
        name, can = "odd", frozenset({"magic"})

    with pytest.raises(ValueError, match="abilities: magic"):
        Odd()
