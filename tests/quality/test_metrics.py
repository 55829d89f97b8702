"""Sample quality: closed forms, honest errors, and torch-fidelity's numbers where it is there."""

import numpy as np
import pytest
from scipy import linalg

from scoremle.errors import UserError
from scoremle.quality import metrics


def normal(n, d=4, *, mean=0.0, scale=1.0, seed=0):
    return mean + scale * np.random.default_rng(seed).normal(size=(n, d))


def covariance(d, seed):
    a = normal(2 * d, d, seed=seed)
    return a.T @ a / d


# Fréchet distance


def of_moments(mean, root, *, n=31, seed=0):
    """Features with this mean and the covariance ``root @ root.T``."""
    x = np.linalg.qr(np.c_[np.ones(n), normal(n, len(root), seed=seed)])[0][:, 1:]
    return mean + np.sqrt(n - 1) * x @ root.T


def test_frechet_distance_of_gaussians_in_closed_form():
    """Commuting covariances: |m - m'|^2 + sum (s - s')^2."""
    basis = np.linalg.qr(normal(5, 5))[0]
    s, other = np.array([0.5, 1, 2, 3, 0]), np.array([1, 1, 0.5, 4, 2])
    mean_a, mean_b = normal(2, 5, seed=1)
    a, b = of_moments(mean_a, basis * s), of_moments(mean_b, basis * other, n=43, seed=1)
    expected = np.sum((mean_a - mean_b) ** 2) + np.sum((s - other) ** 2)
    assert metrics.frechet_distance(a, b).value == pytest.approx(expected, rel=1e-7)


def test_frechet_distance_where_covariances_do_not_commute():
    roots = [np.linalg.cholesky(covariance(6, seed)) for seed in (0, 1)]
    a, b = (root @ root.T for root in roots)
    trace = np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert trace > 0.1
    found = metrics.frechet_distance(*(of_moments(0, root) for root in roots))
    assert found.value == pytest.approx(trace)


def test_frechet_distance_of_features_takes_their_unbiased_moments():
    """In one dimension (m - m')^2 + (s - s')^2; and it is symmetric."""
    a, b = normal(50, 2), normal(70, 2, mean=1, scale=3, seed=1)
    a[:, 1], b[:, 1] = 0, 0
    expected = (a[:, 0].mean() - b[:, 0].mean()) ** 2
    expected += (a[:, 0].std(ddof=1) - b[:, 0].std(ddof=1)) ** 2
    found, swapped = metrics.frechet_distance(a, b), metrics.frechet_distance(b, a)
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert found == pytest.approx(swapped, rel=1e-9)


def test_frechet_distance_of_a_set_from_itself_is_nothing_even_with_few_images():
    a = normal(20, 64).astype(np.float32)
    assert abs(metrics.frechet_distance(a, a).value) < 1e-9


@pytest.mark.parametrize(("n", "m"), [(13, 37), (150, 70)])
@pytest.mark.parametrize(("mean", "scale"), [(0.5, 1.0), (0.0, 1.4)])
def test_error_of_the_frechet_distance_is_its_spread(n, m, mean, scale):
    """Takes sets with fewer images than features, too."""
    d = 17
    root, other = (normal(d, d, seed=seed) / np.sqrt(d) for seed in (1, 2))
    found = [
        metrics.frechet_distance(
            normal(n, d, seed=seed) @ root,
            mean + scale * normal(m, d, seed=1000 + seed) @ (root + 0.2 * other),
        )
        for seed in range(200)
    ]
    values, errors = np.transpose(found)
    assert 0.8 < errors.mean() / values.std(ddof=1) < 1.4


# Kernel distance


def test_squared_mmd_of_two_pairs_by_hand():
    """d = 1: k(x, y) = (xy + 1)^3. k(0, 1) = 1; k(2, 3) = 343; cross (1 + 1 + 27 + 64) / 4."""
    x, y = np.array([[0.0], [1.0]]), np.array([[2.0], [3.0]])
    assert metrics.squared_mmd(x, y) == pytest.approx(1 + 343 - 2 * (1 + 1 + 27 + 64) / 4)


def test_kernel_distance_is_unbiased_and_its_error_honest():
    """For N(0, I) and N(m, I) the MMD is a polynomial in |m|^2; z-scores must be of order one."""
    d, mean = 2, 1.0
    u = d * mean**2 / d  # |m|^2 / d
    # E (x.y/d + 1)^3 = 1 + 3 E[s] + 3 E[s^2] + E[s^3], s = x.y / d; around N(m, I), N(m, I):
    # E[s] = u, E[s^2] = u^2 + 2u/d + 1/d, E[s^3] = u^3 + 6u^2/d + 3u/d + 6u/d^2.
    within = 1 + 3 * u + 3 * (u**2 + 2 * u / d + 1 / d)
    within += u**3 + 6 * u**2 / d + 3 * u / d + 6 * u / d**2
    # Against N(0, I): E[s] = 0, E[s^2] = u/d + 1/d, E[s^3] = 0; and N(0, I) with itself: 1/d.
    truth = within + (1 + 3 / d) - 2 * (1 + 3 * (u + 1) / d)
    found = [
        metrics.kernel_distance(
            normal(300, d, seed=seed), normal(400, d, mean=mean, seed=1000 + seed), subset=25
        )
        for seed in range(200)
    ]
    z = np.array([(e.value - truth) / e.stderr for e in found])
    assert abs(z.mean()) < 0.5
    assert 0.8 < z.std() < 1.4


@pytest.mark.parametrize(
    ("images", "others", "subset", "size", "count"),
    [
        (100, 100, 10, 10, 10), (99, 100, 10, 9, 11), (109, 120, 10, 10, 10),
        (110, 120, 10, 10, 11), (4, 9, 10, 2, 2), (30, 20, 10, 2, 10), (29, 50, 10, 2, 14),
    ],
)  # fmt: skip
def test_there_are_ten_subsets_or_more_of_two_images_or_more(
    images, others, subset, size, count, monkeypatch
):
    sizes = []
    monkeypatch.setattr(metrics, "squared_mmd", lambda x, y: sizes.append((len(x), len(y))) or 0)
    metrics.kernel_distance(normal(images, 2), normal(others, 2), subset=subset)
    assert sizes == [(size, size)] * count


def test_kernel_distance_of_files_in_order_of_class():
    """Subsets are drawn over the whole file: in order, each would have one class only."""
    a, b = normal(1000, 2), normal(1000, 2, seed=1)
    a[500:] += 3
    b[500:] += 3
    shuffled = np.random.default_rng(2).permutation(1000)
    in_order, mixed = (metrics.kernel_distance(x, b, subset=50) for x in (a, a[shuffled]))
    assert in_order.value == pytest.approx(mixed.value, abs=4 * (in_order.stderr + mixed.stderr))


def test_kernel_distance_of_sets_in_the_same_order():
    """No picture meets its own copy within a subset."""
    a = normal(2000, 16)
    b = a + 0.01 * normal(2000, 16, seed=1)
    shuffled = np.random.default_rng(2).permutation(2000)
    in_order, mixed = (metrics.kernel_distance(a, x, subset=50) for x in (b, b[shuffled]))
    assert in_order.value == pytest.approx(mixed.value, abs=4 * (in_order.stderr + mixed.stderr))


def test_no_more_neighbours_than_images_that_are_compared():
    few = normal(20, 2)
    with pytest.raises(UserError, match="neighbours"):
        metrics.precision_recall(few, few, neighbours=metrics.PRECISION_RECALL_IMAGES)


# Class score


def test_class_score_of_sure_and_of_ignorant_classifiers():
    sure = 100 * np.eye(4)[np.arange(400) % 4]
    assert metrics.class_score(sure).value == pytest.approx(4)
    assert metrics.class_score(np.ones((400, 4))) == pytest.approx((1, 0))


def test_class_score_of_two_kinds_of_images_by_hand():
    """p = (3/4, 1/4) or the reverse, equally often: exp(log 2 - H(1/4))."""
    logits = np.log([[3.0, 1.0], [1.0, 3.0]])[np.arange(40) % 2]
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert metrics.class_score(logits).value == pytest.approx(2 * np.exp(-entropy), rel=1e-12)


def test_each_split_of_the_class_score_has_its_own_mean():
    """One class in each half: nothing varies within a split."""
    logits = 2000 * np.eye(2)[np.arange(40) // 20]  # exp(-2000) is 0
    assert metrics.class_score(logits, splits=2) == pytest.approx((1, 0))


@pytest.mark.parametrize("splits", [1, 0, 2.5])
def test_the_class_score_takes_two_parts_for_its_error(splits, unchecked):
    with pytest.raises(UserError, match="splits must"):
        metrics.class_score(np.ones((40, 4)), splits=splits)


def test_the_error_of_the_class_score_is_honest():
    found = [metrics.class_score(normal(400, 5, seed=seed)) for seed in range(200)]
    values = np.array([e.value for e in found])
    stderr = np.mean([e.stderr for e in found])
    assert values.std() == pytest.approx(stderr, rel=0.25)


# Few images

MEASURES = {
    "Frechet": (1, metrics.frechet_distance), "kernel": (3, metrics.kernel_distance),
    "class": (9, lambda a, b: metrics.class_score(b)), "recall": (3, metrics.precision_recall),
}  # fmt: skip


@pytest.mark.parametrize("name", MEASURES)
def test_too_few_images_and_features_of_two_sizes_are_refused(name, unchecked):
    """They would have no variance: NaN, or an error of numpy. One more is enough."""
    few, measure = MEASURES[name]
    for d in (1, 2):
        flat = normal(20, d)[:, 0], normal(20, d)[:, 0]
        for sets in ((normal(20, d), normal(few, d)), (normal(20, d), normal(20, 3)), flat):
            if name != "class" or len(sets[1]) == few or sets is flat:
                with pytest.raises(UserError, match="images or more"):
                    measure(*sets)
        found = measure(normal(20, d), normal(few + 1, d, seed=1))
        assert all(np.isfinite(each).all() for each in found)


# Precision and recall


def test_precision_and_recall_on_a_line_by_hand():
    """Reference 0, 1, 2, 10 with the nearest neighbour: balls of radius 1, 1, 1 and 8."""
    reference = np.array([[0.0], [1], [2], [10]])
    samples = np.array([[0.5], [2.5], [18.5], [-1.5]])  # of radius 2, 2, 16, 2
    found = metrics.precision_recall(samples, reference, neighbours=1)
    assert (found.precision.value, found.recall.value, *found[2:]) == (2 / 4, 4 / 4, 4, 4)


def test_precision_and_recall_distinguish_a_lost_mode_from_bad_samples():
    reference = normal(400, 3)
    reference[200:, 0] += 30
    lost = metrics.precision_recall(normal(400, 3, seed=1), reference)
    assert lost.precision.value > 0.9 and 0.4 < lost.recall.value < 0.6
    bad = metrics.precision_recall(np.concatenate([normal(400, 3, mean=99), reference]), reference)
    assert bad.precision.value == 0.5 and bad.recall.value == 1
    assert 0 < bad.recall.stderr < 0.01


def test_precision_and_recall_do_not_depend_on_an_offset():
    samples, reference = normal(400, 5), normal(400, 5)
    found = metrics.precision_recall(samples, reference)
    assert metrics.precision_recall(samples + 1e7, reference + 1e7) == found


def test_precision_and_recall_of_many_images_are_thinned(monkeypatch):
    monkeypatch.setattr(metrics, "PRECISION_RECALL_IMAGES", 100)
    monkeypatch.setattr(metrics, "ROWS", 30)
    found = metrics.precision_recall(normal(250, 2), normal(150, 2, seed=1))
    assert (found.samples, found.reference) == (100, 100)
    assert min(found.precision, found.recall).value > 0.8


@pytest.mark.parametrize("neighbours", [1, 3])
@pytest.mark.parametrize("m", [5, 29])
def test_the_share_without_each_point_is_that_of_the_others(neighbours, m, monkeypatch):
    """By brute force: each point is left out, and the rest measured anew."""
    monkeypatch.setattr(metrics, "ROWS", 10)
    x, y = normal(37, 2, scale=1.3), normal(m, 2, seed=1)

    def covered(y):
        radius = np.sort(np.linalg.norm(y[:, None] - y, axis=2), axis=1)[:, neighbours]
        return (np.linalg.norm(x[:, None] - y, axis=2) <= radius).any(axis=1)

    shares = [covered(np.delete(y, j, axis=0)).mean() for j in range(m)]
    flips = sum((covered(np.delete(y, j, axis=0)) != covered(y)).sum() for j in range(m))
    of_y = (m - 1) * (np.var(shares) - flips / m / 37**2)
    hits = covered(y).sum()
    share = (hits + 1) / 39
    found = metrics._covered(x, y, neighbours)
    expected = np.sqrt(share * (1 - share) / 37 + max(of_y, 0))
    assert found == pytest.approx((hits / 37, expected), rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(97, 103), (501, 151)])
@pytest.mark.parametrize("mean", [0.0, 0.5])
def test_errors_of_precision_and_recall_are_their_spread(n, m, mean):
    """The binomial error of the samples alone would be up to half of it."""
    found = [
        metrics.precision_recall(normal(n, 8, mean=mean, seed=i), normal(m, 8, seed=1000 + i))
        for i in range(100)
    ]
    for measure in ("precision", "recall"):
        values, errors = np.transpose([getattr(each, measure) for each in found])
        assert 0.8 < errors.mean() / values.std(ddof=1) < 1.5


# Another implementation


@pytest.fixture
def features():
    """Like an Inception's: skewed, none below zero, more images than features."""
    mixing = np.abs(normal(32, 32, seed=5)) / 10
    return [
        (np.maximum(normal(200, 32, seed=seed, mean=shift), 0) @ mixing).astype(np.float32)
        for seed, shift in ((0, 0.0), (1, 0.2))
    ]


def test_torch_fidelity_gives_the_same(features):
    torch = pytest.importorskip("torch", reason="needs the extra: pip install 'scoremle[torch]'")
    pytest.importorskip("torch_fidelity", reason="needs the extra: pip install 'scoremle[torch]'")
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    a, b = features
    tensors = [torch.tensor(x) for x in features]
    moments = [metric_fid.fid_features_to_statistics(t.double()) for t in tensors]
    fid = metric_fid.fid_statistics_to_metric(*moments, False)["frechet_inception_distance"]
    assert metrics.frechet_distance(a, b).value == pytest.approx(fid, rel=1e-7)

    options = {"kid_subsets": 1, "kid_subset_size": 200, "verbose": False}
    kid = metric_kid.kid_features_to_metric(*(t.double() for t in tensors), **options)
    found = metrics.squared_mmd(a.astype(float), b.astype(float))
    assert found == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-9)

    score = metric_isc.isc_features_to_metric(tensors[0], splits=10, shuffle=False)
    found = metrics.class_score(a)
    assert found.value == pytest.approx(score["inception_score_mean"], rel=1e-12)
    assert found.stderr * 3 == pytest.approx(score["inception_score_std"], rel=1e-9)

    prc = metric_prc.prc_features_to_metric(*tensors, verbose=False)
    found = metrics.precision_recall(a, b)
    shares = (found.precision.value, found.recall.value)
    assert shares == pytest.approx((prc["precision"], prc["recall"]))


def test_the_error_of_a_mean_over_subsets():
    """Of logits in two parts, the scores 1 and 2: their spread has one degree of freedom."""
    sure = 200.0 * np.eye(2)
    logits = np.concatenate([np.zeros((2, 2)), sure])
    found = metrics.class_score(logits, splits=2)
    # The first part is the same for all: 1. The second tells two classes apart: 2.
    assert found.value == pytest.approx(1.5)
    assert found.stderr == pytest.approx(0.5)  # sqrt(((1 - 1.5)^2 + (2 - 1.5)^2) / 1 / 2)
