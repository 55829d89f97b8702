"""Scores by the words of the command line: each estimator by its name, on its own model."""

import csv
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from helpers.marks import some
from helpers.printed import assert_printed, column

import scoremle
from scoremle.cli import main as cli
from scoremle.core.dequantize import Flow, TruncatedNormal, Uniform, truncation_start
from scoremle.core.pytree import describe
from scoremle.core.times import evenly
from scoremle.errors import UserError
from scoremle.experiment import measurement
from scoremle.experiment.build import BOUND_TIMES, build
from scoremle.experiment.config import published_config
from scoremle.experiment.measurements import Measurements
from scoremle.experiment.own_measurement import prepared
from scoremle.likelihood.decoders import DiscreteDecoder, InformedDecoder
from scoremle.likelihood.images import ByElbo, ByOde
from scoremle.likelihood.informed import scale_of_others
from scoremle.likelihood.labels import ByLabels
from scoremle.likelihood.steps import BySteps
from scoremle.model import Origin

# A chain of 40 steps whose first noise hides the levels of a pixel, and the model of one Gaussian.
OWN = """
import dataclasses
import json
import jax.numpy as jnp
import numpy as np
import scoremle
from scoremle.core.betas import betas
from scoremle.likelihood.labels import ByLabels
from scoremle.core.prediction import RangedNoise
from scoremle.likelihood.steps import BySteps
from scoremle.model import Origin
from scoremle.zoo.families import PIXELS, published_model

SCHEDULE = scoremle.Discrete.of_betas(betas("linear", 40, 0.002, 0.3))
SDE = scoremle.SDE("vp", SCHEDULE, 1.0)

def noise(x, t):
    alpha, sigma = (c[:, None, None, None] for c in (SDE.alpha(t), SDE.sigma(t)))
    return sigma * x / (0.3 * alpha**2 + sigma**2)

def chain():
    steps = BySteps(variance="large", clip=False)
    return published_model(noise, SDE, SCHEDULE.eps, (4, 4, 1), chain=steps)

def plain():
    return scoremle.ScoreModel(noise, SDE, SCHEDULE.eps, (4, 4, 1), PIXELS)

def levels():
    return dataclasses.replace(plain(), pixels=scoremle.Pixels(16))

def misread():
    network = lambda x, label: noise(x, (label + 1) / 40)
    wrong = scoremle.noise_fn(network, SDE, prediction="v", time_input="step")
    return dataclasses.replace(plain(), noise=wrong)

def ranged():
    def network(x, label):
        eps = noise(x, (label + 1) / 40)
        return jnp.concatenate([eps, x], axis=-1)

    both = RangedNoise(scoremle.noise_fn(network, SDE, time_input="step"))
    return dataclasses.replace(chain(), noise=both)

def later():
    return dataclasses.replace(ranged(), eps=2 / 40)

def labelled():
    def given(x, t, label):  # of images that are lighter by the label
        return noise(x - (SDE.alpha(t) * label / 4)[:, None, None, None], t)

    steps = BySteps(variance="small", clip=False)
    return published_model(given, SDE, SCHEDULE.eps, (4, 4, 1), chain=steps, classes=3)
"""
normal = np.random.default_rng(0).normal(size=(10, 4, 4, 1))
IMAGES = np.clip(127.5 * (1 + normal * np.sqrt(0.3)), 0, 255).astype(np.uint8)


@pytest.fixture
def score(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(OWN)

    def score(function, *flags, images=IMAGES):
        """Exit code, what is said, on the screen or beside the table, and the bits/dim."""
        np.save(tmp_path / "x.npy", images)
        out = tmp_path / "s.csv"
        places = (f"{tmp_path / 'mine.py'}:{function}", str(tmp_path / "x.npy"), f"--out={out}")
        code = cli.main(["score", *places, "--force", *flags])
        told = capsys.readouterr()
        if code:
            return code, told.err, None
        facts = json.loads((tmp_path / "s.csv.json").read_text())["facts"]
        words = "\n".join([told.out, *facts, ""])
        with out.open(newline="") as file:
            return code, words, np.array([float(row["bpd"]) for row in csv.DictReader(file)])

    return score


def assert_are(values, expected, tmp_path):
    """The values of the table are the expected ones, to its last digit."""
    texts = column(tmp_path / "s.csv")
    assert [float(text) for text in texts] == values.tolist()
    assert min(len(text.partition(".")[2]) for text in texts) >= 2
    assert_printed(texts, expected)


def model_of(tmp_path, function):
    return scoremle.load(f"{tmp_path / 'mine.py'}:{function}")


def test_the_steps_of_the_model_are_taken_as_its_family_says(score, tmp_path):
    code, told, bpd = score("chain", "--estimator=steps", "--repeats=2")
    assert code == 0
    by_steps = BySteps(variance="large", clip=False)
    expected = model_of(tmp_path, "plain").score(IMAGES, estimator=by_steps, passes=2)
    assert_are(bpd, expected.bpd, tmp_path)
    words = "bits/dim; variational bound of a chain of steps, fixed large variance\n"
    assert words in told and "steps:" not in told


def test_a_part_of_the_steps(score, tmp_path):
    code, told, bpd = score("chain", "--estimator=steps", "--steps=4", "--repeats=2")
    times = (np.array([0, 13, 26, 39]) + 1) / 40
    by_steps = BySteps(times, variance="large", clip=False)
    expected = model_of(tmp_path, "plain").score(IMAGES, estimator=by_steps, passes=2)
    assert_are(bpd, expected.bpd, tmp_path)
    assert code == 0 and "a chain of 4 steps, fixed large variance\n" in told


@pytest.mark.long
def test_the_bound_ends_by_the_decoder_of_the_model(score, tmp_path):
    """By the informed decoder where levels are hidden, by uniform noise where they are not."""
    plain = model_of(tmp_path, "plain")
    _, told, bpd = score("chain", "--estimator=bound", "--repeats=1")
    scale = scale_of_others(plain, IMAGES, jax.random.key(0))
    informed = ByElbo(decoder=InformedDecoder(plain.pixels.points, scale))
    assert_are(bpd, plain.score(IMAGES, estimator=informed).bpd, tmp_path)
    assert "; variational bound (SDE), 1000 draws, informed decoder\n" in told
    few = IMAGES // 16
    _, told, bpd = score("levels", "--estimator=bound", "--repeats=1", images=few)
    expected = model_of(tmp_path, "levels").score(few, estimator=ByElbo())
    assert_are(bpd, expected.bpd, tmp_path)
    assert "; variational bound (SDE), 1000 draws, uniform dequantization\n" in told


@pytest.mark.long
def test_the_ode_ends_as_the_bound_does(score):
    _, _, bpd = score("chain", "--estimator=bound", "--repeats=1")
    _, told, ode = score("chain", "--repeats=1")
    assert "ODE bound, informed decoder, 1 draw\n" in told and "steps: on 8 images" in told
    assert "the informed decoder takes" in told and "and a flat one would take" in told
    assert "no image has a scale that was fitted to it" in " ".join(told.split())
    assert abs(ode - bpd).max() < 0.5


@pytest.mark.long
@some("estimator", ["ode", "bound"], quick=["bound"])
def test_shares_have_the_scales_of_the_whole(score, estimator, tmp_path):
    flags = f"--estimator={estimator}", "--repeats=1"
    _, _, whole = score("chain", *flags)
    for share in ("1/3", "2/3", "3/3"):
        assert cli.main(
            ["score", f"{tmp_path / 'mine.py'}:chain", str(tmp_path / "x.npy"),
             f"--out={tmp_path / 's.csv'}", "--force", f"--shard={share}", *flags]
        ) == 0  # fmt: skip
    _, _, merged = score("chain", "--merge", *flags)
    np.testing.assert_array_equal(merged, whole)


@pytest.mark.long
@pytest.mark.parametrize("estimator", ["ode", "bound"])
def test_a_learned_range_decodes_where_it_is_of_the_last_step(score, estimator, tmp_path):
    _, told, bpd = score("ranged", f"--estimator={estimator}", "--repeats=1")
    told = " ".join(told.split())
    assert "informed decoder with the network's own scales" in told
    assert "its scale is the network's own, for each pixel" in told
    model = model_of(tmp_path, "ranged")
    found = prepared(model, IMAGES, estimator)
    assert_are(bpd, found.model.score(IMAGES, estimator=found.estimator).bpd, tmp_path)
    (of_later,) = prepared(model_of(tmp_path, "later"), IMAGES[:3], "bound").notes
    assert of_later.endswith("from the smallest time to the integers, so the scale is not its own")
    given = dataclasses.replace(model, decoder_scale=0.1)
    assert prepared(given, IMAGES, estimator).model.decoder.scale == 0.1


@pytest.mark.parametrize("bound", [False, True])
def test_an_evaluation_takes_a_learned_range_and_records_it(score, tmp_path, bound, unchecked):
    score("ranged", "--estimator=odd")  # writes mine.py
    model = model_of(tmp_path, "ranged")
    by_ode, by_elbo = ByOde(solver=model.solver), ByElbo(4)
    evaluation = SimpleNamespace(
        dequantization="informed", label="", suite=False, enable_bpd=True, bound=bound,
        enable_loss=False, bound_times="log_snr", bound_stratified=True, bound_steps=0,
    )  # fmt: skip
    experiment = SimpleNamespace(
        evaluation=evaluation, by_ode=by_ode, by_elbo=by_elbo, objective=None,
        exact=not bound, pilot=False, seed=0,
    )  # fmt: skip
    (found,) = Measurements(experiment, model, tmp_path, 1, IMAGES).measurements()
    assert found.kind == ("bound_informed" if bound else "ode_bound")
    assert found.facts["decoder_scale"] == "learned"
    assert "informed decoder with the network's own scales" in found.facts["estimator"]
    expected = dataclasses.replace(by_ode, decoder=model.decoder)
    if bound:
        expected = dataclasses.replace(by_elbo, decoder=model.decoder, start=model.eps)
    assert describe(found.estimator) == describe(expected)


@pytest.fixture
def measurements(score, tmp_path, unchecked):
    """The measurements of a model by the fields of an evaluation."""
    score("plain", "--estimator=odd")  # writes mine.py

    def found(model, flow=None, images=IMAGES, **fields):
        evaluation = dict(
            dequantization="uniform", label="", suite=False, enable_bpd=True, bound=True,
            enable_loss=False, bound_times="time", bound_stratified=True, bound_steps=0,
        )  # fmt: skip
        experiment = SimpleNamespace(
            evaluation=SimpleNamespace(**evaluation | fields), by_ode=ByOde(), by_elbo=ByElbo(4),
            objective=None, exact=False, pilot=False, seed=0,
            flow=SimpleNamespace(dequantizer=lambda params: params),
        )  # fmt: skip
        each = Measurements(experiment, model, tmp_path, 1, images, flow).measurements()
        return {one.kind: one for one in each}

    return found


def test_the_suite_has_every_estimator(measurements, tmp_path):
    plain = model_of(tmp_path, "plain")
    found, flow = measurements(plain, suite=True), scoremle.Uniform()
    assert [*found] == [
        "exact", "exact_truncated_normal", "exact_k10", "exact_trace", "bound", "bound_none",
        "bound_sliced",
    ]  # fmt: skip
    by = {kind: one.estimator for kind, one in found.items()}
    assert (by["exact_k10"].samples, by["exact"].samples) == (10, 1)
    assert by["exact_trace"].divergence == scoremle.Exact() != by["exact"].divergence
    assert (by["bound"].matching, by["bound_sliced"].matching) == ("denoising", "sliced")
    points = np.linspace(-1, 1, 256)  # as the model declares them
    np.testing.assert_allclose(by["bound_none"].decoder.points, points, atol=1e-6)
    large = measurements(dataclasses.replace(plain, shape=(8, 9, 1)), flow, suite=True)
    of_flow = {"exact_variational", "exact_variational_k10", "bound_variational"}
    assert large.keys() == found.keys() - {"exact_trace"} | of_flow
    assert all((one.dequantizer is flow) == (kind in of_flow) for kind, one in large.items())


def test_the_suite_with_a_network_decoder_has_the_discrete_one_too(measurements, tmp_path):
    model = model_of(tmp_path, "ranged")
    found = measurements(model, suite=True, dequantization="informed")["bound_none"]
    assert type(found.estimator.decoder) is DiscreteDecoder
    start = truncation_start(model.sde, model.eps, model.pixels)
    assert found.estimator.start == pytest.approx(float(start))


@pytest.mark.parametrize(
    ("times", "stratified", "drawn"),
    [
        ("learned", True, "log_snr"), ("log_snr", True, "log_snr"),
        ("learned", False, "log_snr"), ("time", True, "time"), ("time", False, "time"),
    ],
)  # fmt: skip
def test_times_of_a_bound_of_integers_are_those_that_were_asked_for(
    times, stratified, drawn, measurements, tmp_path
):
    model = model_of(tmp_path, "plain")
    fields = {"bound_times": times, "bound_stratified": stratified}
    found = measurements(model, dequantization="none", **fields)["bound_none"]
    assert (found.facts["times"], found.facts["stratified"]) == (drawn, stratified)
    by, start = found.estimator, found.estimator.start
    expected = BOUND_TIMES[drawn](model.sde, start, stratified)
    assert describe(by.times or evenly(model.sde, start)) == describe(expected)


@pytest.mark.parametrize(
    ("origin", "ends"), [({}, 16), ({"middles": True}, 16), ({"grid": True}, 17)]
)
def test_integers_lie_where_the_network_was_trained_on_them(measurements, origin, ends):
    """In the middle of their bins; or on the grid, from end to end of the range."""
    pixels, sde = scoremle.Pixels(17, -17, 17), scoremle.VP()
    model = scoremle.ScoreModel(
        lambda x, t: x, sde, 1e-3, (4, 4, 1), pixels, origin=Origin(**origin)
    )
    (none,) = measurements(model, dequantization="none").values()
    (chain,) = measurements(model, dequantization="none", bound_steps=3).values()
    informed = dataclasses.replace(model, eps=0.5).decoder  # where the noise hides levels
    for decoder in (none.estimator.decoder, chain.estimator.decoder, informed):
        points = np.linspace(-ends, ends, 17)
        np.testing.assert_allclose(decoder.points, points, atol=1e-6)
        np.testing.assert_allclose(decoder.encode(np.arange(17)), points, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "origin"),
    [({"data.uniform_dequantization": False}, Origin(grid=True)), ({}, Origin()),
     ({"data.uniform_dequantization": False, "data.bin_middles": True}, Origin(middles=True))],
)  # fmt: skip
def test_the_origin_of_a_model_is_where_integers_lay_in_training(fields, origin):
    experiment = build(published_config("digits", fields), levels=17)
    assert experiment.model_of({}).origin == origin


@pytest.mark.parametrize("ends", [(9.0, -7.0), (20.0, -6.0)])
def test_a_chain_is_even_in_the_log_snr_that_was_learned(measurements, ends):
    tiny = {
        "data.dataset": "digits", "data.image_size": 8, "data.num_channels": 1, "model.nf": 32,
        "model.num_res_blocks": 1,
    }  # fmt: skip
    experiment = build(published_config("vdm/cifar10", tiny), levels=17)
    learned = {"b": np.array([-ends[0]]), "w": np.array([ends[0] - ends[1]])}
    model = experiment.model_of({"score_model": {}, "gamma": learned})
    (found,) = measurements(model, bound_steps=20).values()
    times = found.estimator.times
    assert float(times[0]) == pytest.approx(truncation_start(model.sde, model.eps, model.pixels))
    gaps = np.diff(np.asarray(model.sde.log_snr(times)))
    np.testing.assert_allclose(gaps, gaps.mean(), rtol=1e-3)


def test_the_informed_decoder_is_for_levels_that_are_hidden(measurements, tmp_path):
    with pytest.raises(UserError, match="it is narrower"):
        levels = model_of(tmp_path, "levels")
        measurements(levels, images=IMAGES // 16, dequantization="informed")


def test_the_mean_over_all_labels_has_no_profile(measurements, tmp_path):
    model = model_of(tmp_path, "labelled")
    (one,), (every,) = (measurements(model, label=label).values() for label in ("1", "all"))
    assert one.log_snr_edges is not None and every.log_snr_edges is None


@pytest.mark.parametrize(("label", "mean_over"), [("all", 1), ("", 7), ("3", 7)])
def test_a_mean_of_probabilities_is_not_corrected(label, mean_over, monkeypatch, unchecked):
    given = {}
    choose = "scoremle.experiment.measurements.choose_for_images"
    monkeypatch.setattr(choose, lambda *_, **how: given.update(how))
    experiment = Mock(exact=True, pilot=True, evaluation=Mock(label=label))
    assert Measurements(experiment, Mock(), Path("x"), 7, IMAGES).choice is None
    assert given["mean_over"] == mean_over


def test_what_looks_wrong_is_said_and_nothing_if_all_is_well(score, tmp_path):
    _, told, _ = score("misread", "--repeats=1")
    assert (
        "check, if these images are like those of its training: the declared prediction is"
        " v, but the output looks like eps: say prediction='eps'\n"
    ) in told
    for function, images in (("plain", IMAGES), ("misread", IMAGES[:3])):  # three can't tell
        found = prepared(model_of(tmp_path, function), images, "bound")
        (worth,) = found.notes
        assert not found.doubts
        assert "wider than half a grey level" in worth


def test_finished_parts_belong_to_the_label(score, tmp_path):
    """Under one label the network is asked once, and of all labels under the first."""
    place, found = f"{tmp_path / 'mine.py'}:labelled", []
    for label in ("0", "2", "all"):
        measurement = prepared(model_of(tmp_path, "labelled"), IMAGES, "steps", label)
        found.append(measurement.identity(place, 0))
    (zero, two, all_labels) = found
    assert zero["outputs"] != two["outputs"] and zero["model"] != two["model"]
    assert all_labels["outputs"] == zero["outputs"]
    assert all_labels["estimator"] != zero["estimator"]


@pytest.mark.long
def test_a_label_or_the_mean_over_all(score, tmp_path):
    flags = "--estimator=steps", "--repeats=2"
    model, by_steps = model_of(tmp_path, "labelled"), BySteps(clip=False)
    code, told, bpd = score("labelled", "--label=2", *flags)
    assert code == 0 and "variance, label 2\n" in told
    one = model.score(IMAGES, condition=np.array([2]), estimator=by_steps, passes=2)
    assert_are(bpd, one.bpd, tmp_path)
    _, told, every = score("labelled", "--label=all", *flags)
    assert "mean over 3 labels\n" in told
    expected = model.score(IMAGES, estimator=ByLabels(by_steps, 3), passes=2)
    assert_are(every, expected.bpd, tmp_path)


def test_samples_of_a_label_or_of_the_mean_over_all(tmp_path):
    """Of a Gaussian that is lighter by the label, as far as there are levels."""
    (tmp_path / "mine.py").write_text(OWN)
    z = np.random.default_rng(1).normal(size=100_000) * np.sqrt(0.3)
    grey = [127.5 * (1 + np.clip(z + label / 4, -1, 1).mean()) for label in range(3)]
    for label, expected in (("0", grey[0]), ("2", grey[2]), ("all", np.mean(grey))):
        out = tmp_path / f"{label}.npy"
        flags = ("-n", "100", "--steps=8", f"--label={label}", "-o", str(out))
        assert cli.main(["sample", f"{tmp_path / 'mine.py'}:labelled", *flags]) == 0
        assert abs(np.load(out).mean() - expected) < 8  # 3 standard errors


@pytest.mark.long
def test_under_all_labels_the_pilot_goes_by_the_first(score, tmp_path):
    model, choice = model_of(tmp_path, "labelled").condition_on(np.array([0])).calibrated(IMAGES)
    found = prepared(model_of(tmp_path, "labelled"), IMAGES, label="all")
    assert found.notes[:-1] == (str(choice),) and "a flat one would take" in found.notes[-1]
    assert found.model.solver == model.solver and found.choice.levels is None
    assert found.estimator.of_one.solver == model.solver
    assert np.isfinite(found.model.score(IMAGES, estimator=found.estimator).bpd).all()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["labelled"], "of 3 classes"),
        (["labelled", "--label=3"], "--label=3 is not one"),
        (["labelled", "--label=-1"], "--label=-1 is not one"),
        (["plain", "--label=all"], "no class labels"),
        (["plain", "--estimator=steps"], "--steps=1000"),
        (["chain", "--steps=3"], "--estimator=steps"),
        (["chain", "--estimator=steps", "--steps=99"], "40 steps"),
        (["plain", "--estimator=odd"], "invalid choice: 'odd'"),
    ],
)
def test_mistakes_are_one_line(score, flags, words):
    code, told, _ = score(*flags)
    assert code == 2 and words in told and told.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "noise", "codes", "label", "kind"),
    [
        ("exact", "uniform", False, "", "exact"),
        ("exact", "truncated_normal", False, "", "exact_truncated_normal"),
        ("exact", "informed", False, "", "ode_bound"),
        ("bound", "uniform", True, "", "bound"), ("bound", "none", False, "", "bound_none"),
        ("bound", "informed", False, "", "bound_informed"),
        ("exact", "uniform", True, "", "exact_code_bound"),
        ("exact", "uniform", False, "3", "exact_label_3"),
        ("exact", "none", True, "all", "exact_none_code_bound_label_all"),
    ],
)  # fmt: skip
def test_a_measurement_is_named_by_its_noise_its_codes_and_its_label(
    name, noise, codes, label, kind, unchecked
):
    model = Mock(coder="codes" if codes else None)
    assert measurement.kind_under(measurement.with_noise(name, noise), model, label) == kind


@pytest.mark.parametrize(
    ("dequantizes", "middles", "label", "title"),
    [
        (True, False, "", "exact, uniform dequantization"),
        (True, True, "", "exact, truncated normal dequantization"),
        (False, True, "", "exact"), (True, False, "3", "exact, label 3, uniform dequantization"),
        (True, False, "all", "exact, uniform dequantization"),
    ],
)  # fmt: skip
def test_a_measurement_says_what_it_is(dequantizes, middles, label, title, unchecked):
    noise = Mock(spec=TruncatedNormal) if middles else Uniform()
    estimator = Mock(title="exact", dequantizes=dequantizes)
    found = measurement.Measurement(None, estimator, noise, label=label)
    assert found.title == title and not found.of_flow
    assert measurement.Measurement(None, estimator, Mock(spec=Flow)).of_flow
