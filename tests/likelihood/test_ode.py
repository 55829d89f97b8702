"""Likelihoods by the ODE against densities in closed form, and the honesty of their error bars."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden_networks import golden_noise
from helpers.marks import some
from helpers.oracles import EPS, SDES, Gaussian, Mixture, schedule

from scoremle import xla
from scoremle.core.condition import conditioned
from scoremle.core.divergence import Exact, FixedProbe, Hierarchical, Hutchinson, Orthogonal
from scoremle.core.pixels import Pixels, bits_per_dim
from scoremle.core.sde import VP
from scoremle.likelihood.ode import ode_log_likelihood
from scoremle.solvers.doubling import Doubling
from scoremle.solvers.multistep import Multistep, Planned

every_sde = some("name", SDES, quick=["vp", "ve_linear"])
KEY = jax.random.key(0)


def evaluator(noise, name, *, eps=None, divergence=Exact(), most=1024):  # noqa: B008
    """``run(x, tolerance)`` by doubling, compiled once for all tolerances."""
    eps = EPS[name] if eps is None else eps

    @jax.jit
    def run(x, tolerance):
        solver = Doubling(tolerance, most=most)
        options = {"eps": eps, "divergence": divergence, "solver": solver}
        return ode_log_likelihood(noise, SDES[name], x, KEY, **options)

    return lambda x, tolerance=1e-5: jax.tree.map(np.asarray, run(jnp.asarray(x), tolerance))


# --- closed forms in float64 ------------------------------------------------------------------


@every_sde
def test_gaussian_pulls_the_prior_back(name, x64):
    data, sde, eps = Gaussian.random(0, 3, 1.5), SDES[name], EPS[name]
    x = data.draw(1, 5)
    result = evaluator(data.noise(sde), name)(x, 1e-10)
    assert result.log_prob.dtype == np.float64
    np.testing.assert_allclose(result.log_prob, data.log_model(sde, x, eps), rtol=0, atol=3e-6)
    np.testing.assert_allclose(result.latent, data.flow(sde, x, eps)[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(result.probe_stderr, 0)
    assert result.ok.all() and (result.evaluations > 10).all()


@every_sde
def test_mixture_pulls_the_prior_back_and_the_solver_states_its_error(name, x64):
    data, sde, eps = Mixture.on_line(), SDES[name], EPS[name]
    x = np.concatenate([data.draw(1, 38), [[-1.2], [1.1]]])
    exact, latent = data.log_model(sde, x, eps), data.flow(sde, x, eps)
    run = evaluator(data.noise(sde), name, most=2048)
    result = run(x, 1e-10)
    np.testing.assert_allclose(result.log_prob, exact, rtol=0, atol=1e-6)
    np.testing.assert_allclose(result.latent, latent, rtol=1e-6, atol=1e-6)
    assert result.ok.all()
    means, costs = [], []
    for tolerance in (1e-3, 1e-5, 1e-7):
        result = run(x, tolerance)
        error = np.abs(result.log_prob - exact)
        if tolerance < 1e-3:  # at 1e-3 the steps are too long for any estimate
            covered = error < 3 * result.solver_error + 1e-7
            assert covered.mean() > 0.9, np.quantile(error / result.solver_error, [0.5, 0.9, 1])
            assert np.median(result.solver_error) < 100 * tolerance  # and it says something
        means.append(error.mean())
        costs.append(result.evaluations.mean())
    assert means[0] > 10 * means[1] > 100 * means[2]
    assert costs[0] < costs[1] < costs[2]


@every_sde
def test_multistep_is_close_and_states_its_error(name):
    data, sde = Gaussian.random(5, 4, 0.6), SDES[name]
    x = data.draw(5, 20).astype(np.float32)
    run = jax.jit(
        lambda x: ode_log_likelihood(
            data.noise(sde), sde, x, KEY, eps=EPS[name], divergence=Exact(), solver=Multistep()
        )
    )
    result = run(jnp.asarray(x))
    error = np.abs(result.log_prob - data.log_model(sde, x.astype(np.float64), EPS[name]))
    assert error.max() < 0.02 * data.dims
    assert (error < 3 * result.solver_error + 5e-4).mean() > 0.9
    assert result.ok.all() and (result.evaluations == result.evaluations[0]).all()


def test_images_are_vectors_with_more_axes():
    data, sde = Gaussian.random(2, 8), SDES["subvp"]
    x = data.draw(3, 2).astype(np.float32)
    run = evaluator(data.noise(sde), "subvp")
    flat, images = run(x), run(x.reshape(2, 2, 2, 2))
    np.testing.assert_allclose(images.log_prob, flat.log_prob, rtol=1e-5)
    np.testing.assert_allclose(images.latent.reshape(2, 8), flat.latent, rtol=1e-4, atol=1e-4)


@every_sde
def test_float32_keeps_the_digits(name):
    data = Gaussian.random(4, 6, 0.5)
    x = data.draw(5, 8).astype(np.float32)
    result = evaluator(data.noise(SDES[name]), name)(x)
    assert result.log_prob.dtype == np.float32
    exact = data.log_model(SDES[name], x.astype(np.float64), EPS[name])
    np.testing.assert_allclose(result.log_prob, exact, rtol=0, atol=2e-4 * data.dims)


@pytest.mark.parametrize("data", [Gaussian.random(5, 4, 0.6), Mixture.on_line()], ids=type)
@every_sde
def test_the_stated_error_of_many_steps_is_no_less_than_rounding(name, data):
    sde, x = SDES[name], data.draw(5, 40).astype(np.float32)
    result = ode_log_likelihood(
        data.noise(sde), sde, jnp.asarray(x), KEY,
        eps=EPS[name], divergence=Exact(), solver=Multistep(512),
    )  # fmt: skip
    error = np.abs(result.log_prob - data.log_model(sde, x.astype(np.float64), EPS[name]))
    assert (error <= result.solver_error).mean() >= 0.9  # 0.1 to 0.4 without rounding
    assert (result.solver_error < 2e-4).all()


@pytest.mark.long
def test_rounding_is_no_reason_for_more_steps():
    """Normal data in many dimensions, whose log p is rounded to more than 0.01 nats."""
    sde, x = VP(), jax.random.normal(KEY, (1, 2000))
    with pytest.warns(UserWarning, match="compute in float64"):
        result = ode_log_likelihood(
            lambda x, t: sde.sigma(t)[:, None] * x, sde, x, KEY, eps=1e-3, divergence=Exact()
        )
    # 40 steps are few for such a sum, and 80 leave rounding alone.
    assert result.solver_error[0] > 0.01 and result.evaluations[0] == 41 + 81


# Rows of N(mean, std^2 I), of which the last needs more steps than the default takes at first.
ROWS = jnp.asarray([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [-60.0, 40.0, 0.05]])


def of_rows(x, t, rows):
    mean, std, sde = rows[:, :2], rows[:, 2:], SDES["vp"]
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    return sigma * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)


BOUND = {
    "by closure": lambda rows: lambda x, t: of_rows(x, t, rows),
    "by condition": lambda rows: conditioned(of_rows, rows),
}


@some("how,copies", product(BOUND, (1, 100)), quick=[("by condition", 100)])
def test_rows_that_are_solved_again_keep_what_the_noise_has_of_each(how, copies):
    """Solves few rows again: of up to 256 in the program of all, of more in one of few."""
    bound = BOUND[how]
    rows = jnp.tile(ROWS, (copies, 1))
    x, keys = rows[:, :2] + rows[:, 2:], jax.random.split(KEY, len(rows))
    found, expected = (
        ode_log_likelihood(noise, SDES["vp"], x, keys, eps=1e-3, condition=condition)
        for noise, condition in [(bound(rows), None), (of_rows, rows)]
    )
    assert (found.evaluations > 41).sum() == copies
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), found, expected)


def test_rows_that_are_solved_again_keep_their_probes():
    """By a matrix that is not symmetric, where another probe gives another trace."""
    def noise(x, t):
        alpha, sigma = SDES["vp"].alpha(t)[:, None], SDES["vp"].sigma(t)[:, None]
        return sigma * (x @ jnp.asarray([[1.0, 0.8], [0.0, 1.0]])) / (0.003 * alpha**2 + sigma**2)

    x = jnp.asarray([[0.0, 0.0], [0.1, 0.0], [0.6, -0.9]])
    probes = FixedProbe(jnp.asarray([[[1.0, 1.0], [1.0, -1.0], [1.0, -1.0]]]))
    found, expected = (
        ode_log_likelihood(
            noise, SDES["vp"], x, KEY, eps=1e-5, divergence=probes, solver=solver
        )
        for solver in (None, Multistep(256))
    )
    assert (found.evaluations > 41).tolist() == [False, True, True]
    np.testing.assert_allclose(found.log_prob, expected.log_prob, atol=0.02)


TRANSFORMS = {
    "jit of grad": lambda value: jax.jit(jax.grad(value)),
    "jvp": lambda value: lambda scale: jax.jvp(value, (scale,), (1.0,))[1],
    "jit": jax.jit,
    "vmap": lambda value: lambda scale: jax.vmap(value)(scale * jnp.ones(2)),
}


@some(
    "name,options",
    [*((name, True) for name in TRANSFORMS), ("jvp", False)],
    quick=[("jit", True)],
)
def test_the_noise_may_close_over_what_is_traced(name, options, monkeypatch):
    """The default is the first solution then; also where a program has no options."""
    if not options:
        monkeypatch.setattr(xla, "_is_known", lambda option: False)
    x, sde = jnp.asarray([[1.0, 0.0]]), SDES["vp"]

    def value(scale, solver=None):
        def noise(x, t):
            return scale * sde.sigma(t)[:, None] * x

        return ode_log_likelihood(noise, sde, x, KEY, eps=1e-3, solver=solver).log_prob.sum()

    found, expected = (
        TRANSFORMS[name](each)(1.0) for each in (value, partial(value, solver=Multistep()))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_noise_beyond_the_range_of_floats():
    """At beta_max = 200 the signal is e^-50, and its ratio to the noise, squared, no number."""
    sde = VP(0.1, 200.0)
    x = jax.random.normal(jax.random.key(0), (4, 3))
    # Of normal data the noise prediction is sigma x, at every t.
    result = ode_log_likelihood(
        lambda x, t: sde.sigma(t)[:, None] * x, sde, x, jax.random.key(1),
        eps=1e-5, divergence=Exact(), solver=Multistep(64),
    )  # fmt: skip
    exact = -(x**2).sum(axis=1) / 2 - 1.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(result.log_prob, exact, atol=1e-2)


@pytest.mark.long
@pytest.mark.parametrize("name", ["vp", "ve_linear"])
def test_density_integrates_to_one(name):
    """Whatever the field: here a mixture's with a vortex and a wave that no density has."""
    data, sde = Mixture.in_plane(), SDES[name]
    exact = data.noise(sde)

    def noise(x, t):
        alpha, sigma = (c[:, None] for c in schedule(sde, t, jnp))
        u = x / jnp.sqrt(alpha**2 / 2 + sigma**2)
        fade = sigma * alpha / (alpha**2 + sigma**2)
        return exact(x, t) + fade * (0.4 * u[:, ::-1] * jnp.array([1, -1]) + 0.3 * jnp.sin(2 * u))

    axis = np.linspace(-4, 4, 41)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2).astype(np.float32)
    result = evaluator(noise, name)(grid, 1e-4)
    assert result.ok.all()
    total = np.exp(result.log_prob.astype(np.float64)).sum() * (axis[1] - axis[0]) ** 2
    assert total == pytest.approx(1, abs=1e-3)


# --- golden numbers ---------------------------------------------------------------------------


@some("name", ["vp", "subvp"], quick=["vp"])
def test_golden_likelihood(name, golden):
    arrays = golden("likelihood")
    truth = f"{name}/f64_tol1e-10_dop853"
    noise, eps = golden_noise("ddpmpp", SDES[name]), float(arrays[f"{name}/t_eps"])
    divergence = FixedProbe(arrays["epsilon"][None])
    bits = 768 * np.log(2)

    # The plan is an argument, so that one compilation serves.
    @jax.jit
    def run(x, solver):
        return ode_log_likelihood(
            noise, SDES[name], x, KEY, eps=eps, divergence=divergence, solver=solver
        )

    for steps, limit in [(32, None), (128, 1e-4)]:
        result = run(jnp.asarray(arrays["data"]), Planned.of(steps, 128))
        error = np.abs(bits_per_dim(result.log_prob, Pixels(), 768) - arrays[f"{truth}/bpd"])
        stated = np.asarray(result.solver_error) / bits
        assert (error < (stated if limit is None else limit)).all(), (error, stated)
        assert result.ok.all()
    assert np.abs(result.latent - arrays[f"{truth}/z"]).max() < 5e-4


# --- error bars -------------------------------------------------------------------------------


@some(
    "name, distribution",
    [("vp", "rademacher"), ("vp", "gaussian"), ("ve", "rademacher")],
    quick=[("vp", "gaussian"), ("ve", "rademacher")],
)
def test_probe_error_is_honest(name, distribution):
    """Many estimates of one image: their mean is the exact value, their spread what they say."""
    data, copies = Gaussian.random(6, 5), 400
    one = data.draw(7, 1).astype(np.float32)
    noise, x = data.noise(SDES[name]), np.repeat(one, copies, axis=0)
    divergence = Hutchinson(8, distribution=distribution)
    result = evaluator(noise, name, divergence=divergence)(x)
    exact = data.log_model(SDES[name], one.astype(np.float64), EPS[name])
    spread = result.log_prob.std()
    assert spread > 0.05  # there is something to estimate
    assert abs(result.log_prob.mean() - exact[0]) < 4 * spread / np.sqrt(copies) + 2e-3
    stated = np.sqrt(np.mean(result.probe_stderr**2))
    assert 0.85 < spread / stated < 1.15
    inside = np.abs(result.log_prob - exact) < 2 * result.probe_stderr
    assert 0.85 < inside.mean() < 0.98  # Student's t with 7 degrees of freedom: 0.914


def test_new_probes_at_each_node_cost_less_error_and_say_how_much():
    """One probe a step: unbiased, its error known, and a fraction of one probe's for all steps."""
    data, copies = Gaussian.random(6, 8), 300
    one = data.draw(7, 1).astype(np.float32)
    noise, sde = data.noise(SDES["vp"]), SDES["vp"]
    x = jnp.asarray(np.repeat(one, copies, axis=0))

    @jax.jit
    def fresh(x):
        return ode_log_likelihood(
            noise, sde, x, KEY, eps=1e-5, divergence=Hutchinson(), solver=Multistep(32)
        )

    @jax.jit
    def held(x):
        probes = Hutchinson().draw(KEY, x)
        return ode_log_likelihood(
            noise, sde, x, KEY, eps=1e-5, divergence=FixedProbe(probes), solver=Multistep(32)
        )

    a, b = fresh(x), held(x)
    exact = data.log_model(sde, one.astype(np.float64), 1e-5)[0]
    spread = np.std(a.log_prob)
    assert abs(np.mean(a.log_prob) - exact) < 4 * spread / np.sqrt(copies) + 5e-3
    assert 0.85 < np.sqrt(np.mean(a.probe_stderr**2)) / spread < 1.2
    assert np.mean(np.abs(a.log_prob - exact) < 2 * a.probe_stderr) > 0.9
    assert spread < 0.4 * np.std(b.log_prob)
    assert np.isnan(b.probe_stderr).all()
    # The probes' noise is not taken for the solver's error.
    assert np.median(a.solver_error) < 0.5 * spread


PROBES = (
    Hutchinson(), Hutchinson(2), Hutchinson(1, "gaussian"), Orthogonal(1), Orthogonal(2),
    Hierarchical(), Hierarchical(2),
)  # fmt: skip


@some(
    "divergence, steps",
    [(divergence, steps) for divergence in PROBES for steps in (12, 24)],
    quick=[(Hutchinson(), 12), (Hierarchical(), 24)],
)
def test_the_error_that_probes_leave_is_stated_of_each_example(divergence, steps):
    """By the exact trace on the same path, the error is known of each; also where a trace has one
    probe, and few nodes. It is stated by the parts of a trace: its own scatter along 24 nodes is
    worth 8 degrees of freedom or less, and covers 90 to 93 %."""
    data, n, sde = Gaussian.random(6, 50), 2000, SDES["vp"]
    x, noise = jnp.asarray(data.draw(7, n), jnp.float32), data.noise(sde)
    solver = Multistep(steps)
    found, exact = (
        ode_log_likelihood(noise, sde, x, KEY, eps=1e-4, divergence=trace, solver=solver)
        for trace in (divergence, Exact())
    )
    error = np.asarray(found.log_prob - exact.log_prob, np.float64)
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(n)
    assert np.mean(np.abs(error) <= 2 * found.probe_stderr) >= 0.945
    stated = np.sqrt(np.mean(np.square(found.probe_stderr)))
    assert 0.95 < stated / error.std() < 1.1


def test_hierarchical_probes_leave_less_where_neighbours_depend_on_each_other():
    """By the exact trace on the same path, the error is known of each."""
    shape, n, sde = (6, 7), 500, SDES["vp"]
    places = np.stack(np.indices(shape), -1).reshape(-1, 2)
    apart = np.linalg.norm(places[:, None] - places, axis=-1)
    data = Gaussian(np.full(len(places), 0.3), *np.linalg.eigh(np.exp(-apart / 3)))
    x, flat = jnp.asarray(data.draw(7, n), jnp.float32).reshape(n, *shape), data.noise(sde)

    def noise(x, t):
        return flat(x.reshape(len(x), -1), t).reshape(x.shape)

    def errors(divergence):
        found, exact = (
            ode_log_likelihood(
                noise, sde, x, KEY, eps=1e-4, divergence=trace, solver=Multistep(40)
            )
            for trace in (divergence, Exact())
        )
        return np.asarray(found.log_prob - exact.log_prob, np.float64), found.probe_stderr

    error, stated = errors(Hierarchical())
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(n)
    assert error.std() < 0.5 * errors(Hutchinson())[0].std()
    assert 0.9 < np.sqrt(np.mean(np.square(stated))) / error.std() < 1.15


@some("name", ["vp", "ve"], quick=["ve"])
def test_doubling_meets_its_tolerance_for_each_example(name):
    data, sde = Mixture.on_line(), SDES[name]
    x = np.concatenate([data.draw(1, 30), [[-1.2], [1.1]]]).astype(np.float32)
    exact = data.log_model(sde, x.astype(np.float64), EPS[name])
    run = jax.jit(
        lambda x: ode_log_likelihood(
            data.noise(sde), sde, x, KEY, eps=EPS[name], divergence=Exact(), solver=Doubling(2e-3)
        )
    )
    result = run(jnp.asarray(x))
    assert result.ok.all() and (result.solver_error <= 2e-3).all()
    error = np.abs(result.log_prob - exact)
    assert np.mean(error < result.solver_error + 3e-4) > 0.9, (error, result.solver_error)
    assert len(np.unique(result.evaluations)) > 1  # easy examples stop earlier
    alone = run(jnp.asarray(x[:1]))
    np.testing.assert_allclose(alone.log_prob[0], result.log_prob[0], atol=1e-4)


def test_one_probe_gives_no_error():
    data = Gaussian.random(6, 5)
    run = evaluator(data.noise(SDES["vp"]), "vp", divergence=Hutchinson())
    result = run(data.draw(7, 3).astype(np.float32))
    assert np.isnan(result.probe_stderr).all()
    assert np.isfinite(result.log_prob).all() and result.ok.all()


def test_an_image_does_not_depend_on_its_neighbours():
    data = Mixture.in_plane()
    x = data.draw(10, 4).astype(np.float32)
    other = x.copy()
    other[1:] = [[5.0, -4.0], [0.0, 0.0], [-9.0, 9.0]]
    noise = data.noise(SDES["vp"])
    run = evaluator(noise, "vp", divergence=Hutchinson(2))
    a, b = run(x), run(other)
    for field in ("log_prob", "latent", "evaluations", "solver_error", "probe_stderr"):
        ours, theirs = getattr(a, field)[0], getattr(b, field)[0]
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, err_msg=field)
    run = evaluator(noise, "vp")
    alone, together = run(x[:1]), run(x)
    np.testing.assert_allclose(alone.log_prob[0], together.log_prob[0], rtol=1e-4)
    assert abs(alone.evaluations[0] - together.evaluations[0]) <= 6


def test_a_network_that_gives_nan_is_not_ok_and_spoils_no_other():
    data = Gaussian.random(0, 2)
    exact = data.noise(SDES["vp"])

    def noise(x, t):
        return jnp.where(x[:, :1] > 3, jnp.nan, exact(x, t))

    x = np.array([[0.5, 0.2], [8.0, 0.1], [-0.3, 1.0]], np.float32)
    result = evaluator(noise, "vp")(x)
    np.testing.assert_array_equal(result.ok, [True, False, True])
    np.testing.assert_array_equal(np.isnan(result.log_prob), [False, True, False])
    good = [0, 2]
    truth = data.log_model(SDES["vp"], x[good].astype(np.float64), EPS["vp"])
    np.testing.assert_allclose(result.log_prob[good], truth, atol=1e-3)


def test_what_a_solver_calls_failed_is_no_number():
    """Even where it gives one."""

    class Failing:
        def solve(self, problem, state):
            return Multistep(4).solve(problem, state)._replace(ok=jnp.array([True, False]))

    data = Gaussian.random(0, 2)
    found = ode_log_likelihood(
        data.noise(SDES["vp"]), SDES["vp"], data.draw(0, 2), KEY, eps=EPS["vp"], solver=Failing()
    )
    for values in (found.log_prob, found.probe_stderr, found.solver_error):
        np.testing.assert_array_equal(np.isnan(values), [False, True])


def test_too_few_steps_have_a_large_error():
    data = Mixture.on_line()
    x = data.draw(0, 2).astype(np.float32)
    result = evaluator(data.noise(SDES["vp"]), "vp", most=16)(x, 1e-6)
    assert (result.solver_error > 1e-6).all() and result.ok.all()
