"""The truth is true: closed forms against quadrature, finite differences and simulation."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scoremle_conformance import subjects
from scoremle_conformance.fields import OUTPUTS, Field
from scoremle_conformance.images import DEQUANTIZERS, Images
from scoremle_conformance.paths import PATHS, cut

MAKERS = [
    subjects.far, subjects.anisotropic, subjects.mixture, subjects.point_mass,
    subjects.low_rank, subjects.classes,
]  # fmt: skip
every_path = pytest.mark.parametrize("path", [cut(path) for path in PATHS.values()], ids=str)
every_subject = pytest.mark.parametrize("make", MAKERS)


def rng(seed=0):
    return np.random.default_rng(seed)


@every_path
def test_scales_have_their_derivatives(path):
    t, h = np.linspace(0.1, 0.9, 5), 1e-6
    at, up, down = (path.scales(t + s * h) for s in (0, 1, -1))
    np.testing.assert_allclose(at.d_alpha, (up.alpha - down.alpha) / (2 * h), atol=1e-5)
    np.testing.assert_allclose(at.d_sigma, (up.sigma - down.sigma) / (2 * h), rtol=1e-6)


@every_path
@every_subject
def test_a_density_on_the_line_is_one_and_its_slope_is_the_score(make, path):
    subject, t = make(1), 0.3

    def density(x):
        return np.exp(subject.log_density(np.array([[x]]), path, t)[0])

    x = subject.draw(rng(), 4, path)
    at = path.scales(t)
    middles = at.alpha * subject.means[:, 0]
    reach = 12 * np.sqrt(at.alpha**2 * subject.variances.max() + at.sigma**2)
    ends = middles.min() - reach, middles.max() + reach
    assert quad(density, *ends, limit=400, points=middles)[0] == pytest.approx(1, abs=1e-6)
    slope = [subject.log_density(x + s * 1e-5, path, t) for s in (1, -1)]
    score = Field(subject, path, "score")(x, t)[:, 0]
    np.testing.assert_allclose((slope[0] - slope[1]) / 2e-5, score, rtol=1e-4, atol=1e-6)


@every_path
@every_subject
def test_the_model_s_value_is_that_of_the_flow_solved_finely(make, path):
    subject = make(3)
    labels = np.array([2, 0]) if make is subjects.classes else None
    field = Field(subject, path, "velocity")
    x = subject.draw(rng(1), 2, path, labels)

    def rate(t, state):
        now = state[:6].reshape(2, 3)
        u = field(now, t, labels)
        shifted = field(now + 1e-20j * np.eye(3)[:, None], t, labels).imag / 1e-20
        return np.concatenate([u.ravel(), np.einsum("ini->n", shifted)])

    start = np.concatenate([x.ravel(), np.zeros(2)])
    end = solve_ivp(rate, (path.start, path.stop), start, "DOP853", rtol=1e-8, atol=1e-8).y[:, -1]
    z = end[:6].reshape(2, 3)
    expected = subjects.log_normal(z, 0, path.prior_std**2) + end[6:]
    np.testing.assert_allclose(subject.log_model(x, path, labels), expected, atol=2e-5)


@pytest.mark.parametrize("framework", ["torch", "jax"])
@pytest.mark.parametrize("output", OUTPUTS)
@every_path
def test_fields_are_the_same_in_every_framework(path, output, framework):
    library = pytest.importorskip("torch" if framework == "torch" else "jax.numpy")
    subject = subjects.classes(3)
    x, labels = subject.draw(rng(2), 4, path), np.array([0, 2, 1, -1])
    convert = library.tensor if framework == "torch" else library.asarray
    for given in (), (labels,):
        for t in (0.3, np.full(4, 0.3)):
            expected = Field(subject, path, output)(x, t, *given)
            found = Field(subject, path, output)(
                convert(x.astype(np.float32)), convert(np.asarray(t, np.float32)),
                *(convert(a) for a in given),
            )  # fmt: skip
            np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_the_variance_of_a_probe(probe):
    subject, path = subjects.anisotropic(5), PATHS["vp"]
    axes = subject.reflect(np.eye(5))
    matrix = axes @ np.diag(subject.growth(path)[0]) @ axes
    generator = rng(3)
    v = generator.normal(size=(400_000, 5))
    v = np.sign(v) if probe == "rademacher" else v
    found = ((v @ matrix) * v).sum(-1)
    assert found.mean() == pytest.approx(subject.trace_part(path)[0], abs=0.02)
    assert found.var() == pytest.approx(subject.probe_variance(path, probe), rel=0.02)


@pytest.mark.parametrize("dequantizer", DEQUANTIZERS)
def test_images_have_their_probability_and_their_bound(dequantizer):
    kind, path = Images((1, 2, 1), 8), PATHS["vp"]
    k, generator = kind.draw(rng(4), 3), rng(5)
    shape = (3, 100_000, 2)
    beta = dequantizer == "beta"
    u = generator.beta(2, 2, size=shape) if beta else generator.uniform(size=shape)
    y = -1 + 2 * (k.reshape(3, 1, 2) + u) / 8
    log_q = np.log(6 * u * (1 - u)).sum(-1) if beta else 0
    alpha = path.scales(path.start).alpha
    rows = kind.subject.log_density(alpha * y.reshape(-1, 2), path, path.start).reshape(3, -1)
    logs = rows + 2 * np.log(alpha) - log_q + kind.log_volume
    truth = kind.log_probability(k, path)
    np.testing.assert_allclose(np.log(np.exp(logs).mean(1)), truth, atol=0.02)
    one, many = (kind.expected(k, path, draws=n, dequantizer=dequantizer) for n in (1, 16))
    np.testing.assert_allclose(logs.mean(1), one, atol=0.02)
    eight = np.log(np.exp(logs.reshape(3, -1, 16)).mean(2)).mean(1)
    np.testing.assert_allclose(many, eight, atol=0.02)
    assert (one < many).all() and (many < truth + 1e-3).all()


def test_probabilities_of_all_images_are_one():
    kind, path = Images((1, 1, 1), 16), PATHS["vp"]
    every = np.arange(16).reshape(16, 1, 1, 1)
    inside = np.exp(kind.log_probability(every, path)).sum()
    mean, std = kind.subject.means[0, 0], kind.subject.variances[0, 0] ** 0.5
    from scipy.stats import norm

    at = path.scales(path.start)
    spread = np.hypot(std, at.sigma / at.alpha)
    expected = np.diff(norm.cdf([-1, 1], mean, spread))[0]
    assert inside == pytest.approx(expected, abs=1e-12)


def test_numpy_and_scipy_suffice():
    code = """
import sys
from scoremle_conformance.__main__ import main
assert main(["sample", "--quick"]) == 0
assert not {"torch", "jax", "scoremle"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nothing wrong was found" in done.stdout
