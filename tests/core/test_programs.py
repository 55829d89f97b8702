"""Programs of a model: compiled once and found again, with the values of what is not compiled."""

import gc
import weakref
from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.marks import some

from scoremle import (
    VP,
    FixedProbe,
    Multistep,
    Pixels,
    ScoreModel,
    UserError,
    ode_log_likelihood,
)
from scoremle import model as models
from scoremle.anomaly import Detector
from scoremle.core import programs
from scoremle.numerics import predict
from scoremle.sampling.exponential import ddim_sample
from scoremle.sampling.ode import euler_sample, ode_draw
from scoremle.sampling.predictor_corrector import PredictorCorrector, pc_sample

SDE, KEY = VP(), jax.random.key(0)
X = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
ROWS: list[int] = []  # of each call of a network: it is called where a program is traced
FIVE = {8, 9}  # of five rows: those of their program, and one more, to see that it takes any


def network(params, x, t, condition=0.0):
    ROWS.append(len(x))
    return SDE.sigma(t)[:, None] * x + jnp.tanh(x @ params["w"] + condition) * params["scale"]


def params(seed):
    return {"w": jax.random.normal(jax.random.key(seed), (2, 2)), "scale": 0.3}


def of(noise):
    return ScoreModel(noise, SDE, 1e-3, (2,), solver=Multistep(4))


def with_leaves(seed=0):
    return of(jax.tree_util.Partial(network, params(seed)))


def bare(seed=0):
    given = params(seed)
    return of(lambda x, t: network(given, x, t))


def value(model, x):
    return model.log_prob(x, KEY).log_prob.sum()


CALLS = {
    "log_prob": lambda model, x: model.log_prob(x, KEY),
    "a key for each": lambda model, x: model.log_prob(x, jax.random.split(KEY, 8)[: len(x)]),
    "condition": lambda model, x: model.log_prob(x, KEY, condition=x[:, :1]),
    "condition_on": lambda model, x: model.condition_on(x[:, :1]).elbo(x, KEY, draws=4),
    "bound": lambda model, x: model.elbo(x, KEY, draws=4),
    "encode": lambda model, x: model.encode(x),
    "decode": lambda model, x: model.decode(x),
    "gradient in x": lambda model, x: jax.grad(value, 1)(model, jnp.asarray(x)),
    "gradient in parameters": lambda model, x: jax.grad(value)(model, x),
}


def traced(function, *arguments):
    """What it gives, and the rows that were traced."""
    ROWS.clear()
    found = function(*arguments)
    return found, {*ROWS}


def same(found, expected):
    def compare(a, b):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)

    jax.tree.map(compare, found, expected)


@some("name", CALLS, quick=["condition"])
def test_a_program_is_found_again(name):
    """By the second call, other parameters, and other numbers of rows."""
    call, model = CALLS[name], with_leaves()
    first, rows = traced(call, model, X[:5])
    assert rows <= FIVE  # what a derivative is of may be there
    for other, x in [
        (model, X[:5]),
        (with_leaves(1), X[:5]),
        *((model, X[:n]) for n in (6, 7, 8)),
    ]:
        found, rows = traced(call, other, x)
        assert rows == set()
    # Within a program of the caller all is as it is written there.
    expected, rows = traced(jax.jit(call), model, X[:5])
    assert rows == {5}
    same(first, expected)
    same(found, jax.jit(call)(model, X))


def test_samples_with_log_p_find_their_program_again():
    """Each batch and call has that of the first, by a chosen solver; so has a bare function."""
    model = with_leaves()
    calls = {
        "samples": lambda n: model.sample(n, KEY, log_prob=True, batch_size=4).log_prob,
        "a function": lambda n: ode_log_likelihood(
            model.noise, SDE, X[:n], KEY, eps=1e-3, solver=Multistep(5)
        ),
    }
    for call in calls.values():
        assert traced(call, 4)[1] == {4}
        assert traced(call, 4)[1] == set()
    assert traced(calls["samples"], 8)[1] == set()


@some("name", ["log_prob", "gradient in x"], quick=["log_prob"])
def test_a_bare_function_is_part_of_its_program(name):
    call, one, other = CALLS[name], bare(0), bare(1)
    first, rows = traced(call, one, X[:5])
    assert rows == FIVE
    assert traced(call, replace(one, eps=1e-3), X[:6])[1] == set()
    assert traced(call, other, X[:5])[1] == FIVE
    again, rows = traced(call, one, X[:5])
    assert rows == set()
    same(first, call(with_leaves(0), X[:5]))
    jax.tree.map(np.testing.assert_array_equal, again, first)


@pytest.mark.parametrize(
    ("rows", "size"),
    [(0, 0), (1, 1), (3, 4), (600, 1024), (1024, 1024), (1025, 1280), (100_000, 114_688)],
)
def test_rows_are_filled_up(rows, size):
    assert programs._size(np.zeros((rows, 1))) == size


def test_a_method_is_the_same_where_it_is_taken_anew():
    net = Net(X)
    first, again = (traced(CALLS["log_prob"], of(net.noise), X)[1] for _ in range(2))
    assert (first, again) == ({8}, set())


@pytest.mark.long
def test_within_vmap_it_is_as_without():
    model = with_leaves()
    found, rows = traced(jax.vmap(lambda x: model.log_prob(x[None], KEY).latent[0]), X[:3])
    assert rows == {1}
    alone = [model.log_prob(x[None], KEY).latent[0] for x in X[:3]]
    np.testing.assert_allclose(found, alone, rtol=1e-5)


@pytest.mark.long
def test_a_tolerance_finds_its_programs_again():
    def call(seed):
        return with_leaves(seed).log_prob(X, KEY, tolerance=0.5)

    first, rows = traced(call, 0)
    assert rows == {8}
    again, rows = traced(call, 0)
    assert rows == set()
    jax.tree.map(np.testing.assert_array_equal, first, again)


# What can't be had in every way


def closing_over(n):
    return of(lambda x, t: network(params(0), x, t, X[:n, :1])), {}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AskingForNumbers:
    w: jax.Array

    def __call__(self, x, t):
        return network(params(0), x, t) + np.linalg.inv(self.w).trace()


def asking_for_numbers():
    return of(AskingForNumbers(jnp.eye(2) / 8)), {}


def of_probes_for_each():
    signs = np.sign(np.random.default_rng(1).normal(size=(1, 5, 2))).astype(np.float32)
    return with_leaves(), {"divergence": FixedProbe(signs)}


@pytest.mark.parametrize(
    ("case", "first", "second"),
    [
        (lambda: closing_over(5), {9, 5}, set()),
        (of_probes_for_each, {5}, set()),
        pytest.param(asking_for_numbers, {*FIVE, 5}, {5}, marks=pytest.mark.long),
    ],
    ids=["closes over rows", "probes for each", "asks for numbers"],
)
def test_what_can_not_be_filled_up_or_compiled_is_as_it_would_be_without(case, first, second):
    model, options = case()
    found, rows = traced(lambda: model.log_prob(X[:5], KEY, **options))
    assert rows == first
    again, rows = traced(lambda: model.log_prob(X[:5], KEY, **options))
    assert rows == second
    same(found, jax.jit(lambda x: model.log_prob(x, KEY, **options))(X[:5]))
    same(again, found)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model: model.log_prob(np.nan * X[:5], KEY), "x .*finite"),
        (lambda model: model.encode(np.nan * X[:5]), "x .*finite"),
        (lambda model: model.decode(np.nan * X[:5]), "z .*finite"),
        (lambda model: model.elbo(X[:5], KEY, condition=np.nan), "condition has"),
        (lambda model: model.condition_on(np.nan).encode(X[:5]), "condition has"),
        (lambda model: model.log_prob(X[:5], jax.random.split(KEY, 8)), "5 examples"),
        (lambda model: model.elbo(X[:5], KEY, condition=X[:, :1]), "1 row or"),
    ],
)
def test_mistakes_are_found_in_programs_that_are_there(call, words, unchecked):
    model = with_leaves()
    for name in ("log_prob", "condition", "condition_on", "encode", "decode"):
        CALLS[name](model, X[:5])
    with pytest.raises(UserError, match=words):
        call(model)
    assert traced(CALLS["log_prob"], model, X[:5])[1] == set()


def test_a_failure_of_a_run_is_raised_and_the_next_call_has_the_program():
    fails = [True]

    def host(x):
        if fails.pop():
            raise RuntimeError("out of memory")
        return x

    def network(x, t):
        ROWS.append(len(x))
        return SDE.sigma(t)[:, None] * jax.pure_callback(host, jnp.zeros_like(x), x)

    model = of(network)
    with pytest.raises(jax.errors.JaxRuntimeError, match="out of memory"):
        model.encode(X)
    fails[:] = [False] * 100
    found, rows = traced(model.encode, X)
    assert rows == set()
    np.testing.assert_allclose(found, X, rtol=0.02)


def test_a_mistake_of_a_network_names_the_rows_that_are_there(unchecked):
    with pytest.raises(UserError, match=r"\(5, 1\)"):
        of(lambda x, t: x[:, :1]).log_prob(X[:5], KEY)


def test_rows_of_a_function_are_never_cut_to_those_of_the_data():
    """As many as there are when the data are filled up, they fit by chance."""
    model, _ = closing_over(8)
    CALLS["log_prob"](model, X)
    with pytest.raises(TypeError, match="incompatible shapes"):
        CALLS["log_prob"](model, X[:5])


def test_whether_it_takes_any_rows_is_by_the_shapes_of_others():
    added = programs.Programs(lambda x, other: x + other)
    assert [added.takes_any_rows(X, X[:n]) for n in (1, 8, 1)] == [True, False, True]


class Net:
    def __init__(self, big):
        self.big = big

    def noise(self, x, t):
        return network(params(0), x, t) + 0 * jnp.asarray(self.big)[: len(x)]


@dataclass(frozen=True)
class EqualNet(Net):
    """One that equals another with the same parts, as modules of flax.linen do."""

    big: np.ndarray = field(compare=False)


def noise_of(kind, big):
    net = EqualNet(big) if kind == "method of equals" else Net(big)
    return {
        "function": lambda x, t: net.noise(x, t),
        "method": net.noise,
        "method of equals": net.noise,
        "with leaves": jax.tree_util.Partial(lambda w, x, t: w * net.noise(x, t), jnp.ones(())),
    }[kind]


KINDS = ["function", "method", "method of equals", "with leaves"]


@some("kind", KINDS, quick=["method of equals"])
def test_programs_keep_no_model_alive(kind):
    def used():
        big = np.ones((1000, 2), np.float32)
        model = of(noise_of(kind, big))
        name = "encode" if kind.startswith("method") else "gradient in x"
        assert traced(CALLS[name], model, X[:5])[1] <= FIVE
        return weakref.ref(big)

    before = len(models._log_prob._programs)
    end = used()
    gc.collect()
    assert end() is None
    assert len(models._log_prob._programs) == before


SAMPLERS = {
    "options": lambda: partial(euler_sample, steps=3),
    "nested": lambda: partial(ode_draw, transport=partial(ddim_sample, steps=3)),
    "of reals": lambda: partial(pc_sample, method=PredictorCorrector(30, snr=0.1)),
}


@some("name", SAMPLERS, quick=["options", "nested"])
def test_equal_samplers_are_one_program(name):
    model, sampler = with_leaves(), SAMPLERS[name]()
    first, rows = traced(lambda: model.sample(2, KEY, sampler=sampler))
    assert rows == {2}
    found, rows = traced(lambda: model.sample(2, KEY, sampler=SAMPLERS[name]()))
    assert rows == set()
    np.testing.assert_array_equal(found, first)


def test_samplers_are_told_apart_by_their_options():
    def scaled(noise, sde, key, shape, *, eps, by):
        return by * predict(noise, sde.prior_sample(key, shape), jnp.full(shape[0], eps))

    model, by = with_leaves(), np.float32(2)
    one, *others = (
        traced(lambda by=by: model.sample(2, KEY, sampler=partial(scaled, by=by)))
        for by in (by, 2, 3.0, np.full(1, 2, np.float32), np.full(1, 3, np.float32))
    )
    assert all(rows == {2} for _, rows in others)
    for (found, _), times in zip(others, (1, 1.5, 1, 1.5), strict=True):
        np.testing.assert_allclose(found, times * one[0], rtol=1e-6)


@some("kind", ["numbers", "arrays"], quick=["numbers"])
def test_a_noise_prediction_may_be_a_partial(kind):
    def used():
        w = {"numbers": 0.3, "arrays": np.full(1, 0.3, np.float32)}[kind]
        function = partial(lambda w, x, t: network({"w": jnp.eye(2), "scale": w}, x, t), w)
        first, rows = traced(CALLS["encode"], of(function), X)
        assert rows == {8}
        again, rows = traced(CALLS["encode"], of(function), X)
        assert rows == set()
        np.testing.assert_array_equal(again, first)
        return weakref.ref(function.func)

    end = used()
    gc.collect()
    assert end() is None


DATA = np.random.default_rng(2).normal(size=(64, 2)).astype(np.float32)
USES = {
    "log_prob": lambda model: model.log_prob(X, KEY),
    "elbo": lambda model: model.elbo(X, KEY, draws=2),
    "within": lambda model: model.within(0.5, X),
    "decode": lambda model: model.decode(X),
    "check": lambda model: model.check(DATA),
    "profile": lambda model: model.profile(X, bins=1, draws=2),
    "sample": lambda model: model.sample(2, KEY),
    "samples with log p": lambda model: model.sample(2, KEY, log_prob=True),
    "score": lambda model: replace(model, shape=(1, 2, 1), pixels=Pixels(8)).score(
        np.zeros((2, 1, 2, 1), np.uint8)
    ),
    **{
        name: lambda model, name=name: Detector.fit(model, DATA, statistic=name).score(model, X)
        for name in ("msma", "scoped", "path")
    },
}


@some("name", USES, quick=["sample", "score"])
def test_no_method_keeps_a_model_alive(name):
    def used():
        big = np.ones((1000, 2), np.float32)
        USES[name](of(lambda x, t: jnp.asarray(big)[0, 0] * x))
        return weakref.ref(big)

    end = used()
    gc.collect()
    assert end() is None


class Slotted:
    """Nobody can hold it weakly."""

    __slots__ = ()


@pytest.mark.long
def test_a_thing_that_can_not_be_held_weakly_is_held():
    slotted, usual, ended = Slotted(), Net(X), []
    held, weakly = (programs._held(thing, lambda: ended.append(1)) for thing in (slotted, usual))
    assert held() is slotted and weakly() is usual
    del slotted, usual
    gc.collect()
    assert isinstance(held(), Slotted) and weakly() is None and ended == [1]


def test_what_has_no_hash_is_no_part_of_a_program():
    assert [*map(programs._is_hashable, ((1, "a"), ([],), {}, None))] == [True, False, False, True]


def test_a_number_is_no_truth_in_a_program():
    function = programs.OfModels(lambda x, option: x * (2 if option is True else 3))
    assert [float(function(1.0, option)) for option in (True, 1, True)] == [2, 3, 2]
