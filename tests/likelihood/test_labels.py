"""The mean over labels: of probabilities, and of a mixture whose classes are all known."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from scoremle import VP, Exact, Hutchinson, Multistep, Pixels, ScoreModel, Uniform
from scoremle.likelihood.images import ByElbo, ByOde
from scoremle.likelihood.labels import ByLabels
from scoremle.likelihood.published_rk45 import PublishedRK45

SDE, LABELS, STD = VP(), 3, 0.25
MEANS = np.random.default_rng(0).normal(size=(LABELS, 2, 2, 1)) * 0.4
IMAGES = np.random.default_rng(1).integers(3, 13, (6, 2, 2, 1)).astype(np.uint8)
BY_ODE = ByOde(Exact(), Multistep(48))


def given(x, t, label):
    """Each class is a Gaussian."""
    alpha, sigma = (c[:, None, None, None] for c in (SDE.alpha(t), SDE.sigma(t)))
    mean = alpha * jnp.asarray(MEANS, x.dtype)[label]
    return sigma * (x - mean) / (alpha**2 * STD**2 + sigma**2)


def mixture(x, t):
    """All of them, each as likely as the others."""
    alpha, sigma = SDE.alpha(t)[:, None], SDE.sigma(t)[:, None]
    mean = alpha[..., None] * jnp.asarray(MEANS, x.dtype).reshape(1, LABELS, -1)
    gap = x.reshape(len(x), 1, -1) - mean
    variance = alpha**2 * STD**2 + sigma**2
    share = jax.nn.softmax(-jnp.sum(gap**2, axis=-1) / variance / 2, axis=1)
    score = -jnp.einsum("bc,bcd->bd", share, gap) / variance
    return -(sigma * score).reshape(x.shape)


MODEL = ScoreModel(given, SDE, 1e-4, (2, 2, 1), Pixels(16))


def test_the_mean_over_the_classes_is_the_likelihood_of_the_mixture():
    """For every draw of the dequantization noise, since all labels are asked with the same."""
    found = MODEL.score(IMAGES, estimator=ByLabels(BY_ODE, LABELS), passes=2)
    expected = replace(MODEL, noise=mixture).score(IMAGES, estimator=BY_ODE, passes=2)
    np.testing.assert_allclose(found.bpd, expected.bpd, atol=2e-3)
    np.testing.assert_allclose(found.stderr, expected.stderr, atol=2e-3)
    each = [MODEL.score(IMAGES, condition=np.array([c]), estimator=BY_ODE, passes=2)
            for c in range(LABELS)]  # fmt: skip
    most, least = (take([e.bpd for e in each], axis=0) for take in (np.max, np.min))
    assert (least - 1e-4 < found.bpd).all() and (found.bpd < most).all()
    errors = np.array([e.solver_error for e in each])
    assert (errors.min(0) <= found.solver_error * (1 + 1e-5) + 1e-9).all()
    assert (found.solver_error <= errors.max(0) * (1 + 1e-5) + 1e-9).all()


@pytest.mark.parametrize(
    "of_one",
    [ByOde(Hutchinson(2), Multistep(16)), pytest.param(ByElbo(64), marks=pytest.mark.long)],
)
def test_errors_are_those_of_the_label_that_has_it_all(of_one):
    """Classes far apart, and images of one: the others add nothing but the share 1/C."""

    def shifted(x, t, label):
        return given(x, t, 0 * label) + 30.0 * label[:, None, None, None]

    far = replace(MODEL, noise=shifted)
    found = far.score(IMAGES, estimator=ByLabels(of_one, LABELS))
    first = MODEL.score(IMAGES, condition=np.array([0]), estimator=of_one)
    np.testing.assert_allclose(found.bpd, first.bpd + np.log2(LABELS) / 4, rtol=1e-4)
    np.testing.assert_allclose(found.probe_stderr, first.probe_stderr, rtol=1e-4)
    assert ByLabels(of_one, LABELS).title == f"{of_one.title}, mean over 3 labels"


@pytest.mark.parametrize("nats", [0, 1e4])
def test_probabilities_are_averaged_and_errors_weighted_by_the_shares_of_the_labels(nats, x64):
    """Labels are unlike in values and errors; at 1e4 nats no probability is above 0."""
    bits, rng = IMAGES[0].size * np.log(2), np.random.default_rng(1)
    columns = {name: jnp.asarray(rng.uniform(0, 1, (LABELS, 2)))
               for name in ("bpd", "probe_stderr", "solver_error", "draw_stderr")}  # fmt: skip
    columns["bpd"] += nats / bits

    class ByTable:
        on_host, dequantizes, title = False, True, "by a table"

        def describe(self):
            return {"estimator": self.title}

        def __call__(self, model, dequantizer, x, keys):
            (label,) = model.noise.condition
            return {name: column[label] for name, column in columns.items()} | {
                "nfe": jnp.ones(2)
            }

    keys = jax.random.split(jax.random.key(0), 2)
    found = ByLabels(ByTable(), LABELS)(MODEL, Uniform(), IMAGES[:2], keys)
    log_prob = -np.asarray(columns.pop("bpd")) * bits
    mean, shares = logsumexp(log_prob, axis=0) - np.log(LABELS), softmax(log_prob, axis=0)
    np.testing.assert_allclose(found["bpd"], -mean / bits, rtol=1e-12)
    for name, column in columns.items():
        np.testing.assert_allclose(found[name], (shares * column).sum(axis=0), rtol=1e-9)


def test_an_estimator_on_the_host_is_refused():
    with pytest.raises(ValueError, match="ByLabels is compiled"):
        ByLabels(ByOde(solver=PublishedRK45()), LABELS)
