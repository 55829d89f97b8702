"""log p of vectors: known densities of 1 to 500 dimensions, conditions, precision, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.marks import some
from helpers.oracles import EPS, SDES, Gaussian, Mixture, of_data, schedule64
from scipy.stats import lognorm, norm

import scoremle
from scoremle import (
    Affine,
    Bounded,
    Chain,
    Exact,
    Hutchinson,
    Multistep,
    Pixels,
    ScoreModel,
    UserError,
    ode_log_likelihood,
)
from scoremle.core.bijectors import AtTime
from scoremle.core.keys import example_keys
from scoremle.likelihood.ode import ode_decode
from scoremle.likelihood.record import Likelihood

KEY, VP, START = jax.random.key(0), SDES["vp"], EPS["vp"]


def of(data, **options):
    return ScoreModel(data.noise(VP), VP, START, (data.dims,), **options)


# The trace


@some("dims", [1, 7, 64, 65, 500], quick=[1, 7, 64, 65])
def test_an_exact_trace_gives_the_density_in_any_dimension(dims):
    data = Gaussian.random(0, dims)
    x = data.draw(1, 2).astype(np.float32)
    found = of(data).log_prob(x, KEY, divergence=Exact(), solver=Multistep(48))
    error = np.abs(found.log_prob - of_data(data.log_model, VP, x.astype(np.float64), START))
    # Rounding: of 500 terms in float32, each of a few nats.
    assert (error < found.solver_error + 1e-4 * dims + 1e-3).all(), (error, found.solver_error)
    assert (found.probe_stderr == 0).all() and found.trace == "Exact(block=64)"


def test_it_is_the_default_up_to_64_dimensions():
    for dims, words in [(64, "Exact(block=64)"), (65, "Hutchinson(probes=1")]:
        model, x = of(Gaussian.random(0, dims), solver=Multistep(2)), np.zeros((1, dims))
        found = model.log_prob(x, KEY)
        assert found.trace.startswith(words) and f"trace {words}" in repr(found)
        z, log_det = AtTime(VP, START).forward(x)
        plain = ode_log_likelihood(model.noise, VP, z, KEY, eps=START, solver=Multistep(2))
        np.testing.assert_allclose(plain.log_prob + log_det, found.log_prob, rtol=1e-5)


def test_what_was_found_is_said_in_a_line():
    def of_errors(solver, probes):
        two, whole = jnp.asarray([-3.0, -4.0]), jnp.asarray([9, 9])
        solver, probes = jnp.asarray(solver), jnp.asarray(probes)
        return Likelihood(two, two[:, None], whole, probes, two[None], solver, whole > 0, "T")

    found = of_errors(solver=[0.1, 0.7], probes=[np.nan, np.nan])
    words = "2 examples: -3.5 nats in the mean; errors of one: solver 0.5, probes unknown; trace T"
    assert repr(found) == f"Likelihood({words})"
    for nothing in (jax.tree.map(lambda leaf: leaf[:0], found), jax.eval_shape(lambda: found)):
        assert repr(nothing) == "Likelihood(no values; trace T)"


@pytest.mark.long
def test_blocks_change_no_value_and_bound_the_memory():
    data = Mixture.of([0.5, 0.5], np.random.default_rng(0).normal(size=(2, 60)), [0.5, 0.8])
    x = jnp.asarray(data.draw(1, 4), jnp.float32)

    def value(x, block, steps=8):
        options = {"divergence": Exact(block), "solver": Multistep(steps)}
        return of(data).log_prob(x, KEY, **options).log_prob.sum()

    whole, parts = (jax.jit(jax.value_and_grad(value), static_argnums=1)(x, b) for b in (64, 7))
    np.testing.assert_allclose(parts[0], whole[0], rtol=1e-5)
    np.testing.assert_allclose(parts[1], whole[1], rtol=1e-3, atol=1e-3)

    def bytes_of(function, *static):
        compiled = jax.jit(function, static_argnums=(1, 2)).lower(x, *static).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    slope = jax.grad(value)
    assert bytes_of(value, 6, 8) < 0.4 * bytes_of(value, 64, 8)
    assert bytes_of(slope, 6, 8) < 0.4 * bytes_of(slope, 64, 8)
    # In reverse a node keeps five arrays like x.
    assert 4.5 < (bytes_of(slope, 6, 24) - bytes_of(slope, 6, 8)) / 16 / x.nbytes < 5.5


def test_a_tolerance_in_nats_is_met_at_less_cost():
    """By fewer probes where more is allowed; exactly, where probes would cost more."""
    data = Gaussian.random(3, 80)
    x = data.draw(1, 32).astype(np.float32)
    model, truth = of(data), of_data(data.log_model, VP, x.astype(np.float64), START)
    traces = []
    for tolerance in (2.0, 0.5, 0.02):
        found = model.log_prob(x, KEY, tolerance=tolerance)
        error = np.sqrt(np.mean(np.square(found.log_prob - truth)))
        assert error < 1.2 * tolerance + 1e-2, (tolerance, error)
        stated = np.hypot(found.solver_error, found.probe_stderr)
        assert np.sqrt(np.mean(np.square(stated))) < 1.3 * tolerance
        traces.append(found.trace)
    probes = [int(trace.split("probes=")[1].split(",")[0]) for trace in traces[:2]]
    assert probes[0] < probes[1] < 80
    assert traces[2] == "Exact(block=64)"


def test_a_pilot_says_what_it_chose_and_gives_a_model_to_compile():
    data = Gaussian.random(3, 5)
    x = jnp.asarray(data.draw(1, 6), jnp.float32)
    model, choice = of(data).within(1e-2, x)
    assert choice.met and choice.examples == 6 and choice.divergence == Exact()
    assert str(choice).startswith(f"{choice.solver.steps} steps, Exact(block=64): on 6 ")
    compiled = jax.jit(lambda model, x: model.log_prob(x, KEY))(model, x)
    truth = of_data(data.log_model, VP, np.asarray(x, np.float64), START)
    error = np.abs(compiled.log_prob - truth)
    assert (error < 1e-2).all() and np.sqrt(np.mean(compiled.solver_error**2)) < 1e-2
    _, missed = of(data).within(1e-9, x)
    assert not missed.met and "aimed at" in str(missed)
    with pytest.warns(UserWarning, match="1e-09 nats of"):
        of(data).log_prob(x, KEY, tolerance=1e-9)


# Conditions, precision, gradients


def shifted(data):
    """Of data scaled and moved by a condition: N(mean, scale^2 Sigma)."""

    def noise(x, t, condition):
        scale, mean = condition["scale"][:, None], condition["mean"]
        alpha, sigma = VP.alpha(t)[:, None], VP.sigma(t)[:, None]
        y = (x - alpha * mean) @ jnp.asarray(data.V, x.dtype)
        y = sigma * y / (alpha**2 * scale**2 * jnp.asarray(data.w, x.dtype) + sigma**2)
        return y @ jnp.asarray(data.V, x.dtype).T

    return ScoreModel(noise, VP, START, (data.dims,), solver=Multistep(64))


def test_a_condition_is_any_pytree_with_a_row_for_each_example_or_one_for_all():
    data = Gaussian.random(3, 3)
    x, model = data.draw(1, 4).astype(np.float32), shifted(data)
    means = np.random.default_rng(0).normal(size=(4, 3))
    for condition in (
        {"mean": means, "scale": np.asarray([0.5, 1.0, 1.5, 2.0])},
        {"mean": means, "scale": 1.5},
        {"mean": means[:1], "scale": np.asarray([0.5])},
    ):
        found = model.log_prob(x, KEY, condition=condition)
        for i in range(4):
            mean, scale = (np.broadcast_to(condition[k], (4, *np.shape(condition[k])[1:]))[i]
                           for k in ("mean", "scale"))  # fmt: skip
            of_row = Gaussian(mean, data.w * scale**2, data.V)
            truth = of_data(of_row.log_model, VP, x[i : i + 1].astype(np.float64), START)
            assert abs(found.log_prob[i] - truth[0]) < found.solver_error[i] + 2e-3
        plain = ode_log_likelihood(
            model.noise, VP, x, KEY, eps=START, condition=condition,
            divergence=Exact(), solver=model.solver,
        )  # fmt: skip
        # At t = 1e-5, where alpha is 1 - 5e-7.
        np.testing.assert_allclose(plain.log_prob, found.log_prob, atol=1e-4)


def test_a_list_of_numbers_is_an_array_of_conditions():
    x, model = np.ones((3, 2), np.float32), shifted(Gaussian.random(3, 2))
    rows = {"mean": [[1.0, 2.0], [3.0, 4.0], [0.5, 0.0]], "scale": [1, 1.5, 2]}
    arrays = {name: np.asarray(values) for name, values in rows.items()}
    found, expected = (model.log_prob(x, KEY, condition=c).log_prob for c in (rows, arrays))
    np.testing.assert_array_equal(found, expected)
    of_numpy = model.log_prob(x, KEY, condition=arrays | {"scale": [*np.float32(rows["scale"])]})
    np.testing.assert_array_equal(of_numpy.log_prob, expected)
    with pytest.raises(UserError, match="1 row"):
        model.log_prob(x, KEY, condition=rows | {"scale": [1.0, 2.0]})


def test_float64_is_used_where_it_is_chosen(x64):
    data = Gaussian.random(0, 3)
    x = data.draw(1, 5).astype(np.float32)
    truth = of_data(data.log_model, VP, x.astype(np.float64), START)
    single, double = (
        of(data).log_prob(x, KEY, dtype=dtype, solver=Multistep(512))
        for dtype in ("float32", "float64")
    )
    assert (single.log_prob.dtype, double.log_prob.dtype) == (np.float32, np.float64)
    errors = [np.abs(found.log_prob - truth).max() for found in (single, double)]
    assert errors[1] < 2e-7 < errors[0] < 1e-4, errors


@some("divergence", [Exact(block=2), Hutchinson(2)], quick=[Hutchinson(2)])
def test_gradients_in_data_condition_and_parameters(divergence, x64):
    """Of a network, in float64, against finite differences along random directions."""
    rng = np.random.default_rng(0)

    def network(params, x, t, condition):
        told = jnp.concatenate([x, condition, VP.log_snr(t)[:, None] / 5], axis=1)
        return VP.sigma(t)[:, None] * x + jnp.tanh(told @ params["in"]) @ params["out"]

    given = {
        "params": {"in": 0.3 * rng.normal(size=(8, 6)), "out": 0.3 * rng.normal(size=(6, 5))},
        "x": rng.normal(size=(3, 5)),
        "condition": rng.normal(size=(1, 2)),
        "scale": 1.0 + rng.random(5),
    }
    weights = jnp.asarray(rng.normal(size=3))

    @jax.jit
    def value(given):
        noise = jax.tree_util.Partial(network, given["params"])
        bijector = Affine(0.1, given["scale"])
        model = ScoreModel(noise, VP, 1e-3, (5,), solver=Multistep(12), bijector=bijector)
        found = model.log_prob(
            given["x"], KEY, condition=given["condition"], divergence=divergence
        )
        return weights @ found.log_prob

    given = jax.tree.map(jnp.asarray, given)
    gradient, h = jax.grad(value)(given), 1e-5
    leaves, structure = jax.tree.flatten(given)
    for i, leaf in enumerate(leaves):
        direction = rng.normal(size=leaf.shape)
        ends = [
            float(value(jax.tree.unflatten(structure, [*leaves[:i], moved, *leaves[i + 1 :]])))
            for moved in (leaf + h * direction, leaf - h * direction)
        ]
        slope = np.sum(direction * jax.tree.leaves(gradient)[i])
        assert slope == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6, abs=1e-7)


# Data of other scales, and with bounds


def test_a_bijector_gives_the_density_of_the_data_themselves():
    """A log-normal, and a normal of mean 50 and standard deviation 20, by a network that sees
    N(0, I) of both: each within its stated error."""
    data = Gaussian.of([0.0, 0.0], [1.0, 1.0])
    bijector = Chain((
        Bounded(low=np.asarray([0.0, -np.inf])),
        Affine(np.asarray([1.0, 50.0]), np.asarray([0.5, 20.0])),
    ))  # fmt: skip
    model = of(data, bijector=bijector, solver=Multistep(48))
    rng = np.random.default_rng(0)
    x = np.stack([np.exp(1 + 0.5 * rng.normal(size=200)), 50 + 20 * rng.normal(size=200)], axis=1)
    truth = lognorm.logpdf(x[:, 0], s=0.5, scale=np.e) + norm.logpdf(x[:, 1], 50, 20)
    found = model.log_prob(x, KEY)
    assert (np.abs(found.log_prob - truth) < found.solver_error + 1e-3).all()
    bound = model.elbo(x, KEY, draws=64)
    terms = bound.prior + bound.diffusion + bound.reconstruction
    np.testing.assert_allclose(bound.log_prob, -terms, rtol=1e-4, atol=1e-4)
    gap = truth - bound.log_prob
    assert abs(gap.mean()) < 4 * np.sqrt(np.mean(bound.stderr**2) / 200) + 1e-2
    np.testing.assert_allclose(model.decode(model.encode(x)), x, rtol=1e-2)
    drawn = model.sample(4000, KEY)
    assert (drawn[:, 0] > 0).all()
    moments = np.log(drawn[:, 0]).mean(), np.log(drawn[:, 0]).std(), *drawn[:, 1].std(keepdims=1)
    np.testing.assert_allclose(moments, (1.0, 0.5, 20.0), rtol=0.05)


# Mistakes

X = np.zeros((3, 2), np.float32)
DATA = Gaussian.random(0, 2)
PLAIN = of(DATA)
NAN = np.where(np.arange(3)[:, None] == 1, np.nan, X)
BEYOND = np.where(np.arange(3)[:, None] == 1, 1e30, X)


def of_scale(scale):
    noise = jax.tree_util.Partial(lambda scale, x, t: scale * x, scale)
    model = ScoreModel(noise, VP, START, (2,))
    return model.log_prob(X, KEY, tolerance=0.1).log_prob.sum()


def of_scale_within(scale):
    model = ScoreModel(lambda x, t: scale * x, VP, START, (2,))
    return model.log_prob(X, KEY, tolerance=0.1).log_prob.sum()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: PLAIN.log_prob(NAN, KEY), "x .*row 1"),
        (lambda: PLAIN.log_prob(X[:, :1], KEY), "x must"),
        (lambda: PLAIN.log_prob(X, KEY, condition=np.zeros((2, 1))), "1 row or"),
        (lambda: PLAIN.log_prob(X, KEY, condition={"a": NAN}), "condition has"),
        (lambda: PLAIN.log_prob(X, KEY, dtype="float64"), "float64 is off"),
        (lambda: PLAIN.log_prob(X[:0], KEY, tolerance=0.1), "needs examples"),
        (lambda: PLAIN.log_prob(BEYOND, KEY, tolerance=0.1), "row 1 is"),
        (lambda: PLAIN.log_prob(X, KEY, tolerance=0.1, divergence=Exact()), "not both"),
        (lambda: jax.jit(lambda x: PLAIN.log_prob(x, KEY, tolerance=0.1))(X), "needs numbers"),
        (lambda: jax.grad(of_scale)(1.0), "needs numbers"),
        (lambda: jax.grad(of_scale_within)(1.0), "needs numbers"),
        (lambda: of(DATA, bijector=Bounded(low=0.0)).log_prob(X - 1, KEY), "model's bijector"),
        (lambda: of(DATA, pixels=Pixels(8), bijector=Bounded(low=0.0)), "of the two"),
    ],
)
def test_mistakes_are_one_line(call, words, unchecked):
    with pytest.raises(UserError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_functions_of_arrays_name_the_same_mistakes(unchecked):
    for x, options, words in [
        (NAN, {}, "x .*row 1"),
        (X, {"condition": np.zeros((2, 1))}, "1 row or"),
        (X, {"dtype": "float64"}, "float64 is off"),
    ]:
        with pytest.raises(UserError, match=words):
            ode_log_likelihood(lambda x, t, *_: x, VP, x, KEY, eps=START, **options)


# Rows that need more than the others


@pytest.fixture(scope="module")
def between():
    """A model of two narrow modes, rows of these, rows from between them, and the truth of all.

    Between the modes the field turns from one to the other within a moment.
    """
    with jax.enable_x64(True):
        dims, width, rng = 30, 0.5, np.random.default_rng(0)
        means = 0.7 * rng.normal(size=(2, dims))

        def log_p(x, t):
            variance = (VP.alpha(t) * width) ** 2 + VP.sigma(t) ** 2
            apart = jnp.sum(jnp.square(x - VP.alpha(t) * means), axis=1)
            return jax.nn.logsumexp(-apart / (2 * variance))

        def noise(x, t):
            return -VP.sigma(t)[:, None] * jax.vmap(jax.grad(log_p))(x, t)

        model = ScoreModel(noise, VP, eps=1e-3, shape=(dims,))
        share = np.linspace(0.4, 0.6, 16)[:, None]
        ordinary = means[np.arange(32) % 2] + width * rng.normal(size=(32, dims))
        x = np.concatenate([ordinary, share * means[0] + (1 - share) * means[1]])
        truth = model.log_prob(x, KEY, divergence=Exact(), solver=Multistep(1024))
        return model, x, np.asarray(truth.log_prob)


@pytest.mark.long
def test_the_default_solves_rows_again_that_need_it_alone_or_among_others(between, x64):
    """Each row as it would be alone."""
    model, x, truth = between
    found = model.log_prob(x, KEY, divergence=Exact())
    error = np.abs(found.log_prob - truth)
    assert found.refined and found.solver_error.max() < 0.01 and error.max() < 0.02
    assert found.evaluations.max() > 4 * found.evaluations.min()
    keys = example_keys(KEY, len(x))
    rows = slice(38, 39)
    alone = model.log_prob(x[rows], keys[rows], divergence=Exact())
    np.testing.assert_allclose(alone.log_prob, found.log_prob[rows], rtol=1e-9)
    once = model.log_prob(x, KEY, divergence=Exact(), solver=Multistep())
    assert not once.refined and (once.solver_error > 0.01).any()


FAR = {"eps": 1e-3}


def moved_far(width):
    """Data on a line of this width, noise prediction and rows of it, at t = 1e-3 under sub-VP.

    Such data move outwards by e^9, and the steps state too little.
    """
    line, sde = np.array([1, 0.5, -0.3]), SDES["subvp"]
    data = Gaussian.of([1.0, -2.0, 0.5], width * np.outer(line, line))
    alpha, sigma = schedule64(sde, FAR["eps"])
    noisy = Gaussian.of(alpha * data.mu, alpha**2 * data.covariance + sigma**2 * np.eye(3))
    return data, data.noise(sde), noisy.draw(1, 64)


@pytest.mark.parametrize("width", [0.0, 1.0], ids=["a point", "a line"])
def test_rows_solved_again_state_what_more_steps_change(width, x64):
    data, noise, x = moved_far(width)
    once = ode_log_likelihood(noise, SDES["subvp"], x, KEY, **FAR, solver=Multistep())
    found = ode_log_likelihood(noise, SDES["subvp"], x, KEY, **FAR)
    again = np.asarray(found.evaluations > once.evaluations)
    np.testing.assert_array_equal(again, once.solver_error > 0.0025)
    assert 30 < again.sum() < 64
    error = np.abs(found.log_prob - data.log_model(SDES["subvp"], x, FAR["eps"]))
    assert (error <= found.solver_error)[again].mean() > 0.9, (error, found.solver_error)
    assert np.median((found.solver_error / error)[again]) < 6


def test_the_noise_of_probes_is_no_error_of_the_solver(x64):
    """They are drawn anew, and change log p by half a nat and more: if that counted as an error,
    some rows would be solved by 640 steps."""
    _, noise, x = moved_far(1e-8)
    found = ode_log_likelihood(noise, SDES["subvp"], x, KEY, **FAR, divergence=Hutchinson())
    assert 41 < found.evaluations.max() <= 41 + 81 + 161
    assert found.probe_stderr.max() > 0.5


def test_latents_are_solved_again_by_the_stated_error_alone(x64):
    """Other steps find other data, whose log p differs."""
    data, noise, x = moved_far(1.0)
    z, _ = data.flow(SDES["subvp"], x, FAR["eps"])
    _, once = ode_decode(noise, SDES["subvp"], z, KEY, **FAR, solver=Multistep())
    _, found = ode_decode(noise, SDES["subvp"], z, KEY, **FAR)
    again = found.evaluations > once.evaluations
    np.testing.assert_array_equal(again, once.solver_error > 0.01)
    assert 0 < again.sum() < (once.solver_error > 0.0025).sum()


def test_rows_whose_error_stays_large_get_a_warning(unchecked):
    """A field that jumps at each step: no number of steps resolves it."""

    def noise(x, t):
        return jnp.sign(jnp.sin(1e7 * t))[:, None] * x

    model = ScoreModel(noise, VP, eps=1e-3, shape=(2,))
    with pytest.warns(UserWarning, match="3 of 3"):
        found = model.log_prob(jnp.ones((3, 2)), KEY)
    assert (found.evaluations == sum(n + 1 for n in (40, 80, 160, 320, 640, 1024))).all()


@pytest.mark.long
def test_doubling_brings_each_row_within_the_tolerance_between_modes_too(between, x64):
    (model, x, truth), tolerance = between, 0.05
    solver = scoremle.Doubling(tolerance / model.dims)
    found = model.log_prob(x, KEY, divergence=Exact(), solver=solver)
    error = np.abs(found.log_prob - truth)
    assert max(error.max(), found.solver_error.max()) < tolerance, (error, found.solver_error)


@pytest.mark.long
def test_a_tolerance_solves_the_rows_again_that_the_pilot_has_none_like(between, x64):
    """They state an error above it, and get more steps; the others keep their values."""
    (model, x, truth), tolerance = between, 0.05
    pilots, choice = model.within(tolerance, x)
    assert choice.met and choice.examples == 32
    once, found = pilots.log_prob(x, KEY), model.log_prob(x, KEY, tolerance=tolerance)
    error = np.abs(once.log_prob - truth)
    assert error[:32].max() < tolerance < 100 * tolerance < error[32:].max()  # it is not easy
    # The pilot's factor, of a fifth, is not for these; nor does the solver tell all of them.
    assert (error < 2.5 * once.solver_error)[32:].all(), (error, once.solver_error)
    again = np.asarray(once.solver_error > tolerance)
    assert not again[:32].any()
    error = np.abs(found.log_prob - truth)
    assert max(error.max(), found.solver_error.max()) < tolerance, (error, found.solver_error)
    np.testing.assert_allclose(found.log_prob[~again], once.log_prob[~again], rtol=1e-12)
    np.testing.assert_array_equal(found.evaluations > once.evaluations, again)
    assert found.evaluations.max() < 1000 and found.evaluations.mean() < 4 * once.evaluations[0]
    z, log_det = AtTime(VP, 1e-3).forward(x)
    arrays = ode_log_likelihood(model.noise, VP, z, KEY, eps=1e-3, tolerance=tolerance)
    np.testing.assert_array_equal(arrays.log_prob + log_det, found.log_prob)


@pytest.mark.long
def test_rows_solved_again_have_no_typical_error_of_fewer_steps():
    """Data of rank 10 in 100 dimensions, where the pilot's own steps do not meet the tolerance."""
    sde = scoremle.SDE("straight", scoremle.LinearLogSNR(-18.0, 13.3), 1 / (1 + np.exp(-9)))
    variance = np.zeros(100, np.float32)
    variance[:10] = 1

    def noise(x, t):
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        return sigma * x / (alpha**2 * variance + sigma**2)

    model = ScoreModel(noise, sde, eps=0.0, shape=(100,))
    scale = np.sqrt(variance + np.exp(-13.3))
    x = np.random.default_rng(0).normal(size=(16, 100)).astype(np.float32) * scale
    found = model.log_prob(x, KEY, tolerance=0.05)
    assert found.evaluations.max() < 500 and found.solver_error.max() < 0.05


def test_log_p_that_is_not_finite_is_said(unchecked):
    broken = ScoreModel(lambda x, t: x * jnp.nan, VP, START, (2,))
    for model, x in ((of(DATA), np.full((3, 2), 3e38, np.float32)), (broken, X)):
        with pytest.warns(UserWarning, match=f"{len(x)} of {len(x)}"):
            model.log_prob(x, KEY)
