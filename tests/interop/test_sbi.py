"""Estimators of sbi, by the lines of docs/howto/other-libraries.md, beside sbi's own log p."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.marks import some
from helpers.places import ROOT

import scoremle

torch = pytest.importorskip("torch")
pytest.importorskip("sbi")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of sbi

KEY = jax.random.key(0)
PAGE = (ROOT / "docs/howto/other-libraries.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.fixture(autouse=True)
def one_thread():
    """Torch's threads wait for one another by spinning: beside another worker, for minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def documented():
    names = {"scoremle": scoremle}
    exec(next(block for block in CODE if "of_fmpe" in block), names)
    return names


def untrained(builder, **options):
    """An estimator of random weights, for parameters of three scales; and some of these."""
    torch.manual_seed(0)
    theta = torch.randn(200, 3) * torch.tensor([0.5, 1.0, 2.0]) + 1
    x = torch.randn(200, 2)
    estimator = builder(hidden_features=16, num_layers=2, **options)(theta, x).eval()
    return estimator, theta[:5], x[:1]


def own_log_prob(estimator, theta, x):
    from sbi.inference.posteriors import VectorFieldPosterior
    from sbi.utils import BoxUniform

    prior = BoxUniform(-100 * torch.ones(3), 100 * torch.ones(3))
    exact = {"atol": 1e-7, "rtol": 1e-6}
    return VectorFieldPosterior(estimator, prior).log_prob(theta, x=x, ode_kwargs=exact).numpy()


def test_flow_matching_is_sbis_own():
    from sbi.neural_nets.factory import posterior_flow_nn

    estimator, theta, x = untrained(posterior_flow_nn)
    model = documented()["of_fmpe"](estimator, x.numpy())
    found = model.log_prob(
        theta.numpy(), KEY, condition=x.numpy(), solver=scoremle.Multistep(96)
    )
    error = np.abs(found.log_prob - own_log_prob(estimator, theta, x))
    # Ours is the density of the data with noise of 0.0013.
    assert (error < found.solver_error + 5e-3).all(), (error, found.solver_error)


@some("sde_type", ["vp", "subvp", "ve"], quick=["ve"])
def test_a_score_is_sbis_own_but_for_the_prior(sde_type):
    from sbi.neural_nets.factory import posterior_score_nn

    estimator, theta, x = untrained(posterior_score_nn, sde_type=sde_type)
    model = documented()["of_npse"](estimator, x.numpy(), sde_type)
    found = scoremle.ode_log_likelihood(  # theta is for sbi a point at the smallest time
        model.noise, model.sde, theta.numpy(), KEY, eps=model.eps, condition=x.numpy(),
        solver=scoremle.Multistep(96),
    )  # fmt: skip
    base = torch.distributions.Normal(estimator.mean_base, estimator.std_base)
    of_sbi = base.log_prob(torch.tensor(np.asarray(found.latent))).sum(1).numpy()
    values = found.log_prob - model.sde.prior_log_prob(jnp.asarray(found.latent)) + of_sbi
    error = np.abs(values - own_log_prob(estimator, theta, x))
    assert (error < found.solver_error + 2e-3).all(), (error, found.solver_error)
    assert np.abs(found.log_prob - values).max() > 1e-2  # and the prior is told by it


class Velocity(torch.nn.Module):
    """With a condition, as flow_matching calls it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inside, self.out = torch.nn.Linear(6, 16), torch.nn.Linear(16, 3)

    def forward(self, x, t, c):
        told = [x, t.expand(len(x))[:, None], c.expand(len(x), 2)]
        return self.out(torch.tanh(self.inside(torch.cat(told, 1))))


@some("by", ["torchax", "torch"], quick=["torchax"])
def test_a_velocity_with_a_condition_is_flow_matchings_own(by):
    solver = pytest.importorskip("flow_matching.solver")
    pytest.importorskip(by)
    from scoremle.interop.torch import from_velocity

    x, c = np.random.default_rng(0).normal(size=(4, 3)), np.asarray([[0.5, -1.0]])
    model = from_velocity(
        Velocity(), data_at=1, shape=(3,), log_snr=(-18.0, 18.0), condition=c, by=by
    )
    found = model.log_prob(
        x, KEY, condition=c, solver=scoremle.Multistep(64), divergence=scoremle.Exact(block=2)
    )
    normal = torch.distributions.Normal(torch.zeros(3).double(), 1.0)
    _, expected = solver.ODESolver(Velocity().double()).compute_likelihood(
        torch.from_numpy(x), torch.distributions.Independent(normal, 1).log_prob, None,
        method="dopri5", atol=1e-8, rtol=1e-8, time_grid=torch.tensor([1.0, 0.0]),
        exact_divergence=True, c=torch.from_numpy(c),
    )  # fmt: skip
    error = np.abs(found.log_prob - expected.detach().numpy())
    assert (error < 1e-3 + found.solver_error).all(), (error, found.solver_error)
