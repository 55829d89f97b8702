"""Detectors: p-values that hold, statistics in closed form, and files that are as they were."""

import contextlib
import dataclasses
import itertools
import json
from unittest.mock import Mock

import numpy as np
import pytest
from helpers.marks import some
from helpers.oracles import SDES, Gaussian, schedule64

import scoremle
from scoremle.anomaly import Anomalies, Detector
from scoremle.anomaly.normality import Density, Ranks
from scoremle.anomaly.statistics import LEVELS, POWERS, STATISTICS, STEPS, Examples, numbers_of
from scoremle.core.codes import Coder
from scoremle.errors import UserError
from scoremle.files import SEAL, write_sealed
from scoremle.model import Origin

RNG = np.random.default_rng(0)
SDE, EPS = SDES["vp"], 1e-3
DATA = Gaussian.of([0.2, 0.2, 0.2, 0.2], np.square([0.15, 0.15, 0.15, 0.15]))


def of_pixels(x, t):
    return DATA.noise(SDE)(x, t)


IMAGES = scoremle.ScoreModel(of_pixels, SDE, EPS, (2, 2, 1), scoremle.Pixels(64, -1, 1))
VECTORS = scoremle.ScoreModel(DATA.noise(SDE), SDE, EPS, (4,))
NORMAL = np.asarray(IMAGES.pixels.decode(DATA.draw(0, 90).reshape(-1, 2, 2, 1)))
OTHERS = np.asarray(IMAGES.pixels.decode(DATA.draw(1, 11).reshape(-1, 2, 2, 1)))
WHITE = np.full((1, 2, 2, 1), 63, np.uint8)
every_statistic = pytest.mark.parametrize("statistic", STATISTICS)


@every_statistic
def test_a_p_value_belongs_to_its_image_and_what_does_not_belong_is_listed(statistic, tmp_path):
    detector = Detector.fit(IMAGES, NORMAL, statistic=statistic)
    found = detector.score(IMAGES, np.concatenate([OTHERS, WHITE, OTHERS[:1]]))
    n = len(detector.reference) + 1
    assert found.p[-2] == 1 / n and found.p[:11].mean() > 0.25
    assert found.p[-1] == found.p[0] and found.score[-1] == found.score[0]
    places = found.p * n
    np.testing.assert_allclose(places, np.round(places), rtol=1e-12)
    detector.write(tmp_path / "detector")
    again = Detector.read(tmp_path / "detector")
    assert again == detector
    np.testing.assert_array_equal(again.score(IMAGES, OTHERS[3:5]).p, found.p[3:5])
    if statistic == "typicality":
        assert len(detector.fitted.weights) == 1


@some("statistic", sorted(STATISTICS.keys() - {"complexity"}), quick=["likelihood", "scoped"])
def test_vectors_have_the_same(statistic):
    normal = DATA.draw(2, 80).astype(np.float32)
    detector = Detector.fit(VECTORS, normal, statistic=statistic)
    found = detector.score(VECTORS, np.full((1, 4), 5.0, np.float32))
    assert found.p[0] == 1 / (len(detector.reference) + 1)


def test_features_of_one_s_own_have_p_values_that_hold():
    """Over detectors of fresh normal vectors, with whole numbers, which tie."""
    places, rng = [], np.random.default_rng(3)
    for seed in range(150):
        x = rng.integers(0, 3, (300, 9)).astype(np.float32)
        x = x[np.unique(x, axis=0, return_index=True)[1]]
        rng.shuffle(x)
        detector = Detector.fit(None, x[:40], seed=seed)
        places.append(detector.score(None, x[40:44]).p * 21)
    counts = np.bincount(np.round(np.ravel(places)).astype(int), minlength=22)[1:]
    assert counts.sum() == 600 and np.square(counts - 600 / 21).sum() / (600 / 21) < 70


@some("statistic", ["likelihood", "profile", "scoped"], quick=["likelihood", "scoped"])
def test_an_image_has_its_features_wherever_it_stands(statistic):
    """Those that are estimated by probes, which are drawn for each image."""
    data = Gaussian.random(5, 36)
    model = scoremle.ScoreModel(data.noise(SDE), SDE, EPS, (6, 6, 1), IMAGES.pixels)
    images = np.asarray(model.pixels.decode(data.draw(6, 5).reshape(-1, 6, 6, 1)))

    def of(images):
        few = Examples(model, images, numbers_of(images), 0, "")
        return STATISTICS[statistic].features(few)

    np.testing.assert_allclose(of(images), of(images[::-1])[::-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("statistic", ["likelihood", "typicality", "complexity", "profile"])
def test_randomness_belongs_to_the_seed_and_to_the_number_of_an_image(statistic, unchecked):
    called, bits = [], np.array([[1.0], [0.0], [np.e]])

    class Model:
        pixels = IMAGES.pixels

        def score(self, data, **options):
            called.append(options)
            return Mock(bpd=bits[:, 0])

        def profile(self, data, **options):
            called.append(options)
            return Mock(bits=bits)

    numbers = np.array([7, 8, 9], np.uint64)
    images = Examples(Model(), OTHERS[:3], numbers, 5, "words")
    found = STATISTICS[statistic].features(images)
    (options,) = called
    assert options.pop("index") is numbers and options == {"seed": 5, "label": "words"}
    of_bits = np.log(np.maximum(bits, 1e-12)) if statistic == "profile" else bits
    np.testing.assert_allclose(found[:, :1], of_bits)
    assert found.shape[1] == (2 if statistic == "complexity" else 1)


def test_data_keep_the_digits_that_float32_loses_beside_an_offset():
    x, far = DATA.draw(2, 50), 1e8
    moved = dataclasses.replace(VECTORS, bijector=scoremle.Affine(far, 1.0))
    of_far = Examples(moved, far + x, numbers_of(far + x), 0, "")
    np.testing.assert_allclose(STATISTICS["msma"].features(of_far), features("msma", x), atol=1e-3)
    assert Detector.fit(None, far + x).equal == Detector.fit(moved, far + x).equal == 0


def features(statistic, x):
    return STATISTICS[statistic].features(Examples(VECTORS, x, numbers_of(x), 0, ""))


def test_statistics_are_those_of_the_closed_form():
    x = DATA.draw(4, 3)
    low, high = (float(SDE.log_snr(t)) for t in (1.0, EPS))
    # The ratio of ||eps||^2 to sigma tr: with w the same along all axes.
    lam = np.linspace(high, low, LEVELS)
    alpha, sigma = schedule64(SDE, np.asarray(SDE.time_of_log_snr(lam), np.float64))
    of_noise = sigma**2 / (0.0225 * alpha**2 + sigma**2)
    distance = np.square(x - 0.2).sum(axis=1)[:, None]
    ratio = of_noise * distance * alpha**2 / sigma**2 / 4
    ratio = np.where(of_noise < 1e-3, np.nan, ratio)
    found = features("scoped", x.astype(np.float32))
    known = np.isfinite(ratio)
    np.testing.assert_allclose(found[known], np.log(ratio)[known], atol=0.01)
    # Euler steps of dy/ds = eps.
    lam = np.linspace(high, low, STEPS + 1)
    s, y, speeds = np.exp(-lam / 2), x.copy(), []
    for before, after in itertools.pairwise(s):
        speeds.append(before * (y - 0.2) / (0.0225 + before**2))
        y = y + (after - before) * speeds[-1]
    sums = [(np.abs(values) ** power).sum(axis=(0, 2))
            for values in (np.stack(speeds), np.diff(speeds, axis=0)) for power in POWERS]
    found = features("path", x.astype(np.float32))
    np.testing.assert_allclose(found, np.log(np.stack(sums, axis=1)), atol=0.02)


def test_both_ends_of_ranks_are_unusual_and_regression_takes_the_rest():
    x = np.random.default_rng(9).normal(size=(5000, 2))
    x[:, 0] += 3 * x[:, 1]
    ranks = Ranks.fit(x)
    found = ranks(np.array([[0.0, 0.0], [30.0, 10.0], [9.0, 0.0], [-9.0, 0.0], [90.0, 0.0]]))
    assert found[:2].max() < 0.2 and (found[2:4] > 0.5).all() and found[4] > 10 * found[2]


def test_a_density_is_that_of_the_mixture():
    """The score is that of standardised features, up to a constant."""
    rng = np.random.default_rng(8)
    x = np.concatenate([rng.normal(-5, 1, (2000, 1)), rng.normal(5, 1, (2000, 1))])
    density = Density.fit(x)
    assert len(density.weights) == 2
    at = np.array([[-5.0], [0.0], [6.0]])
    truth = -np.log(np.exp(-((at + 5) ** 2) / 2) + np.exp(-((at - 5) ** 2) / 2))[:, 0]
    found = density(at)
    np.testing.assert_allclose(found - found[0], truth - truth[0], atol=1.0)
    one = Density.fit(x[:2000], most=1)
    np.testing.assert_allclose(np.diff(one(np.array([[-5.0], [-3.0]]))), 2, atol=0.5)
    with_constant = np.column_stack([x, np.full(4000, 3.0)])
    found = Density.fit(with_constant)(with_constant)
    np.testing.assert_allclose(np.ptp(found - density(x)), 0, atol=0.1)


def test_ranks_by_hand():
    """From the middle by the rank; beyond all normal ones by the distance, too."""
    ranks = Ranks(slopes=(2.0, 1.0), residuals=(0.0, 1.0, 2.0, 3.0, 4.0))
    values = np.array([2.0, 0.0, 0.5, 4.0, 6.0, -1.0])
    others = np.arange(6.0)
    found = ranks(np.column_stack([values + 2 * others + 1, others]))
    expected = [0, 0.4, 0.3, 0.4, 0.5 + 2 / np.sqrt(2), 0.5 + 1 / np.sqrt(2)]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    one = Ranks(slopes=(0.0,), residuals=(3.0, 3.0))  # without a spread: by the distance itself
    np.testing.assert_allclose(one(np.array([[3.0], [5.0]])), [0, 2.5])


@pytest.mark.parametrize(
    ("clusters", "of_each", "dims", "gaussians"),
    [(2, 10, 1, 2), (2, 9, 1, 1), (2, 10, 2, 1), (2, 20, 2, 2), (5, 10, 1, 5), (6, 20, 1, 5)],
)
def test_a_density_has_ten_examples_for_each_dimension_of_a_gaussian(
    clusters, of_each, dims, gaussians
):
    """And five Gaussians at most."""
    centres = np.repeat(np.square(np.arange(clusters)), of_each)[:, None]
    x = 100.0 * centres + RNG.normal(size=(clusters * of_each, dims))
    density = Density.fit(x)
    assert len(density.weights) == len(density.means) == gaussians
    assert sum(density.weights) == pytest.approx(1)


def test_forty_different_examples_are_enough():
    x = RNG.normal(size=(40, 2))
    detector = Detector.fit(None, x)
    assert len(detector.reference) == 20 and detector.equal == 0
    assert [*detector.reference] == sorted(detector.reference)
    with pytest.raises(UserError, match="40 different"):
        Detector.fit(None, np.concatenate([x[:39], x[:9]]))
    assert repr(detector) == "Detector(features, 20 references, least p 0.048)"


@pytest.mark.parametrize(("spare", "fine"), [(0, True), (-2, False)])
def test_a_detector_too_large_to_be_read_is_not_written(spare, fine, tmp_path, monkeypatch):
    detector = Detector.fit(None, RNG.normal(size=(40, 2)))
    length = len(json.dumps(dataclasses.asdict(detector), indent=2))
    monkeypatch.setattr("scoremle.anomaly.detector.LONGEST_JSON", 2 * length + spare)
    told = contextlib.nullcontext() if fine else pytest.raises(UserError, match="too many numbers")
    with told:
        detector.write(tmp_path / "detector")
    assert (tmp_path / "detector").exists() == fine


@pytest.mark.parametrize("kind", [Ranks, Density])
def test_a_score_does_not_depend_on_the_place_among_others(kind):
    x = np.random.default_rng(4).normal(size=(101, 7))
    normality = kind.fit(x)
    alone = np.concatenate([normality(row[None]) for row in x])
    np.testing.assert_array_equal(normality(x), alone)


def test_p_values_hold_where_examples_are_equal():
    """Fits detectors to data of which nearly half are one blank vector."""

    def draw(seed, n):
        rng = np.random.default_rng(seed)
        return np.where(rng.random((n, 1)) < 0.45, 9.0, rng.normal(size=(n, 2)))

    shares = []
    for seed in range(40):
        detector = Detector.fit(None, draw([0, seed], 199), seed=seed)
        assert len(detector.reference) == 100 and 60 < detector.equal < 120
        shares.append((detector.score(None, draw([1, seed], 300)).p <= 0.1).mean())
    # Blank ones have one p-value together: the share of a detector varies by up to 0.45.
    error = np.std(shares, ddof=1) / len(shares) ** 0.5
    assert abs(np.mean(shares) - 10 / 101) < 3 * error and error < 0.03


@pytest.mark.parametrize("number", [0.1, 0.25])
def test_a_feature_that_never_varies_has_no_scale(number):
    """Rounded to float32 it stays the same, though the mean of equal numbers is rounded, too."""
    x = np.random.default_rng(5).normal(size=(450, 3))
    x[:, 2] = number
    detector = Detector.fit(None, x[:400])
    found = detector.score(None, x[400:].astype(np.float32))
    assert not found.suspects(0.1).any()


@pytest.mark.parametrize("number", [1e-3, 1.0, 1e3])
def test_a_feature_that_never_varied_and_does_is_unusual_in_any_unit(number):
    x = np.random.default_rng(6).normal(size=(450, 3))
    x[:, 2] = number * (1 + 0.001 * (np.arange(450) >= 400))
    assert (Detector.fit(None, x[:400]).score(None, x[400:]).p < 0.05).mean() > 0.9


def test_the_order_of_normal_images_does_not_matter():
    normal = np.concatenate([NORMAL, NORMAL[:7]])
    detector = Detector.fit(IMAGES, normal, statistic="msma")
    assert detector == Detector.fit(IMAGES, normal[::-1], statistic="msma")
    assert detector.equal == len(normal) - len(np.unique(NORMAL, axis=0))
    assert len(detector.reference) == 49


def test_it_says_how_many_references_it_takes():
    x = np.random.default_rng(10).normal(size=(60, 2))
    detector = Detector.fit(None, x.astype(np.float32))
    assert detector.limits(3, 0.1) == ""
    told = detector.limits(100, 0.1)
    assert "for one it takes 999" in told and "only 33 or more together" in told
    assert "nor all of them" in detector.limits(3, 0.01)
    with pytest.raises(UserError, match="rate"):
        detector.limits(3, 0.0)


FEW = "different examples or more"
COLOURS = np.arange(396, dtype=np.uint16).reshape(99, 1, 1, 4)
DEEP = dataclasses.replace(IMAGES, shape=(1, 1, 4), pixels=scoremle.Pixels(1024))
MISTAKES = {
    "name": (lambda: Detector.fit("digits", NORMAL), "model must be such as"),
    "statistic": (lambda: Detector.fit(IMAGES, NORMAL, statistic="luck"), "statistic must be"),
    "of vectors": (lambda: Detector.fit(VECTORS, DATA.draw(0, 50), statistic="complexity"),
                   "images"),
    "deep colours": (lambda: Detector.fit(DEEP, COLOURS, statistic="complexity"), "as PNG"),
    "of no model": (lambda: Detector.fit(None, DATA.draw(0, 50), statistic="msma"), "features"),
    "few": (lambda: Detector.fit(IMAGES, NORMAL[:20]), FEW),
    "equal": (lambda: Detector.fit(IMAGES, np.repeat(NORMAL[:20], 9, axis=0)), FEW),
    "size": (lambda: Detector.fit(IMAGES, np.zeros((99, 3, 3, 1), np.uint8)), "shape"),
    "no vectors": (lambda: Detector.fit(None, np.zeros((99, 3, 3))), "vectors"),
    "other vectors": (lambda: Detector.fit(VECTORS, np.zeros((99, 3))), "shape"),
    "p": (lambda: Anomalies(np.ones(1), np.full(1, np.nan)), "p must"),
    "ps": (lambda: Anomalies(np.ones(2), np.ones(1)), "for each"),
    "model of a score": (
        lambda: Detector.fit(None, DATA.draw(0, 50)).score("digits", DATA.draw(0, 5)),
        "model must be such as",
    ),
    "rate": (lambda: Anomalies(np.ones(1), np.ones(1)).suspects(1.5), "rate"),
    "small rate": (lambda: Anomalies(np.ones(1), np.ones(1)).suspects(1e-320), "rate"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name, unchecked):
    call, words = MISTAKES[name]
    with pytest.raises(UserError, match=words):
        call()


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    path = tmp_path_factory.mktemp("detector") / "detector"
    Detector.fit(IMAGES, NORMAL, statistic="msma", facts={"model": "mine.py:model"}).write(path)
    return path


def test_another_model_and_other_images_are_refused(detector):
    found = Detector.read(detector)
    others = [
        None, VECTORS, scoremle.ScoreModel(of_pixels, SDE, 2 * EPS, (2, 2, 1), IMAGES.pixels),
        dataclasses.replace(IMAGES, decoder_scale=0.5),
        dataclasses.replace(IMAGES, divergence=scoremle.Exact()),
        dataclasses.replace(IMAGES, origin=Origin(middles=True)),
        dataclasses.replace(IMAGES, coder=Coder(lambda x: x.reshape(len(x), -1), 4, 1)),
    ]  # fmt: skip
    for model in others:
        with pytest.raises(UserError, match=r"not the model.*mine.py:model"):
            found.score(model, OTHERS)
    with pytest.raises(UserError, match=r"scoremle 0\.1"):
        dataclasses.replace(found, version="0.1").score(IMAGES, OTHERS)
    eps, v = (
        dataclasses.replace(IMAGES, noise=scoremle.noise_fn(of_pixels, SDE, prediction=prediction))
        for prediction in ("eps", "v")
    )
    with pytest.raises(UserError, match="not the model"):
        Detector.fit(eps, NORMAL, statistic="msma").score(v, OTHERS)
    with pytest.raises(UserError, match="shape"):
        found.score(IMAGES, np.zeros((2, 3, 3, 1), np.uint8))
    assert len(found.score(IMAGES, OTHERS[:0])) == 0
    of_features = Detector.fit(None, np.random.default_rng(0).normal(size=(99, 3)))
    with pytest.raises(UserError, match=r"shape \(3,\) each"):
        of_features.score(None, np.zeros((2, 4)))


@pytest.mark.parametrize("wrapped", [False, True])
def test_another_function_of_the_same_name_is_another_model(wrapped, tmp_path):
    """It has no parameters that show what it is, also beside numbers of an SDE that are some."""

    def model(mean):
        def noise(x, t):
            return SDE.sigma(t)[:, None] * (x - SDE.alpha(t)[:, None] * mean)

        if wrapped:
            noise = scoremle.noise_fn(noise, SDE, time_input="time")
        return scoremle.ScoreModel(noise, SDE, EPS, (2,))

    normal = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    Detector.fit(model(0.0), normal, statistic="msma").write(tmp_path / "d")
    found = Detector.read(tmp_path / "d")
    assert len(found.score(model(0.0), normal[:3])) == 3
    for mean in (0.5, -3.0):
        with pytest.raises(UserError, match="not the model"):
            found.score(model(mean), normal[:3])


def without(name):
    return lambda content: {k: v for k, v in content.items() if k != name}


GAUSSIAN = {"shift": [0.0], "scale": [1.0], "weights": [1.0], "means": [[0.0]],
            "whitening": [[[1.0]]]}  # fmt: skip
HOSTILE = [
    ({"statistic": "luck"}, "statistic must be"), ({"seed": -1}, "seed must be"),
    ({"reference": []}, "ascending"), ({"reference": [2.0, 1.0]}, "ascending"),
    ({"fitted": {"slopes": [], "residuals": [1.0]}}, "slope"),
    ({"fitted": {"slopes": [1.0], "residuals": []}}, "residuals"),
    *(({"fitted": GAUSSIAN | {name: value}}, "mixture") for name, value in (
        ("shift", []), ("scale", [0.0]), ("scale", [1.0, 1.0]), ("weights", []),
        ("means", [[0.0], [1.0]]), ("whitening", [[[1.0, 0.0]]]),
    )),
    ({"fitted": GAUSSIAN | {"means": [[0.0, 1.0], [1.0]]}}, "fit it anew"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "words"), HOSTILE)
def test_a_sealed_file_that_none_wrote_is_one_line(fields, words, detector, tmp_path):
    content = json.loads(detector.read_text()) | fields
    write_sealed(tmp_path / "d", {name: content[name] for name in content if name != SEAL})
    with pytest.raises(UserError, match=words):
        Detector.read(str(tmp_path / "d"))


DAMAGES = {
    "changed": lambda content: content | {"reference": content["reference"][1:]},
    "no seal": without("seal"),
    "an empty seal": lambda content: content | {"seal": None},
    "another file": lambda content: {"unit": "bits/dim"},
    "of another kind": lambda content: content | {"reference": "many"},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_detector_is_one_line(damage, detector, tmp_path):
    content = json.loads(detector.read_text())
    (tmp_path / "d").write_text(json.dumps(DAMAGES[damage](content)))
    with pytest.raises(UserError, match=r"written|not a detector"):
        Detector.read(tmp_path / "d")
    (tmp_path / "d").write_bytes(detector.read_bytes()[:500])
    with pytest.raises(UserError, match="JSON"):
        Detector.read(tmp_path / "d")


def test_the_most_unusual_come_first_by_the_score_where_p_ties():
    found = Anomalies(np.array([9.0, 0.1, 10.0]), np.array([0.01, 0.8, 0.01]))
    assert found.order.tolist() == [2, 0, 1]
