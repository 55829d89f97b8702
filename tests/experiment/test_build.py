"""Live objects from configs: what the published ones build, and their loss by its own formula."""

import json
from functools import cache
from operator import attrgetter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from scoremle import data
from scoremle.cli.commands import parser_of
from scoremle.core.dequantize import Uniform
from scoremle.core.divergence import Exact, Hierarchical, Hutchinson, Orthogonal
from scoremle.core.keys import normal
from scoremle.core.pixels import Pixels
from scoremle.core.sde import VE, VP, LinearVE, SubVP
from scoremle.core.times import UniformLogSNR, UniformTime
from scoremle.errors import UserError, choose
from scoremle.experiment import build as building
from scoremle.experiment import training
from scoremle.experiment.build import build, logged_by
from scoremle.experiment.configs import NAMED_CONFIGS
from scoremle.experiment.networks import NetworkSpec
from scoremle.experiment.rules import check_config
from scoremle.experiment.run_train import run_train
from scoremle.experiment.workdir import Workdir
from scoremle.likelihood.decoders import Entropy, GaussianDecoder
from scoremle.likelihood.images import ByOde
from scoremle.likelihood.published_rk45 import PublishedRK45
from scoremle.nn import DDPMpp
from scoremle.sampling import predictor_corrector
from scoremle.solvers.doubling import Doubling
from scoremle.solvers.multistep import Multistep
from scoremle.training import loop

PUBLISHED = sorted(name for name in NAMED_CONFIGS if name.endswith("_continuous"))
DIGITS = ("data.dataset=digits", "data.image_size=8", "data.num_channels=1")
SMALL = (
    "model.nf=4", "model.ch_mult=(1,)", "model.num_res_blocks=1", "model.attn_resolutions=(1,)",
    "model.init_scale=1.0",
)  # fmt: skip
# The published objective and network, which the config digits has not.
LW_IS = (
    "training.sde=vpsde", "model.parameterization=published",
    "training.time_density=published", "training.importance_weighting=True",
)


def config(path, *fields):
    flags = [f"--config.{field}" for field in fields]
    argv = [f"--config={path}", "--workdir=w", "--mode=eval", *flags]
    return parser_of("").checked(argv).config


def untraced(path, *fields):
    """An experiment whose network is not traced to check its fields."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Training, "template", lambda self: None)
        return build(config(path, *fields))


@cache
def digits(*fields):
    return untraced("configs/digits.py", *LW_IS, *SMALL, *fields)


def test_a_network_is_traced_once_for_all_that_load_it(monkeypatch):
    fields = *LW_IS, *SMALL, "model.nf=5"
    first = build(config("configs/digits.py", *fields)).training.template
    monkeypatch.setattr(NetworkSpec, "init", lambda *_: pytest.fail("traced"))
    assert build(config("configs/digits.py", *fields, "seed=3")).training.template == first
    with pytest.raises(pytest.fail.Exception, match="traced"):
        build(config("configs/digits.py", *fields, "model.ch_mult=(2,)"))


@cache
def digits_params():
    """Initial parameters of that network; what the other fields say does not change them."""
    return digits().training.init_state().params


def test_pixels_of_centred_data_begin_at_minus_one():
    lows = [digits(f"data.centered={centred}").model.pixels.low for centred in (True, False)]
    assert lows == [-1.0, 0.0]


# Published configs


@pytest.mark.parametrize("path", PUBLISHED)
def test_published_configs_say_where_their_data_must_be(path):
    with pytest.raises(UserError, match=r"needs data\.path=P.*(cifar-10-binary|PNG)"):
        build(config(path))


@pytest.mark.parametrize("path", PUBLISHED)
def test_published_configs_build_but_for_their_data(path):
    experiment = untraced(path, *DIGITS)
    deep, imagenet, subvp = "_deep_" in path, "imagenet32" in path, "subvp" in path
    assert experiment.model.sde == (SubVP() if subvp else VP(0.1, 20.0))
    assert experiment.model.eps == (1e-2 if subvp else 1e-5)
    assert experiment.model.network == DDPMpp(
        nf=128, ch_mult=(1, 2, 2, 2), num_res_blocks=8 if deep else 4, attn_resolutions=(16,),
        dropout=0.0 if imagenet else 0.1, resblock_type="biggan", init_scale=0.0,
    )  # fmt: skip
    assert experiment.objective.times == UniformTime(experiment.model.eps)
    assert experiment.model.pixels == Pixels(17)
    schedule = experiment.training.schedule
    assert (schedule.n_iters, schedule.n_jitted_steps) == (950_001 if deep else 1_300_001, 5)
    assert schedule.n_iters // schedule.snapshot_freq == (19 if deep else 26)
    assert experiment.training.ema_rate == 0.9999
    assert experiment.data.random_flip is not imagenet


@pytest.mark.parametrize("path", PUBLISHED)
def test_published_experiments_with_both_weightings(path):
    flags = ("training.likelihood_weighting=True", "training.importance_weighting=True")
    experiment = untraced(path, *DIGITS, *SMALL, *flags)
    eps = 1e-2 if "subvp" in path else 5e-5 if "imagenet32" in path else 1e-5
    assert experiment.objective.times == UniformLogSNR(experiment.model.sde, eps)


# Names and values


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("model.ch_mult", 2, "tuple of int"),
        ("model.ch_mult", (1, "2"), "tuple of int"),
        ("model.nf", "4", "int, not '4'"),
        ("model.nf", True, "int, not True"),
        ("model.dropout", "0", "float, not '0'"),
        ("model.conditional", 1, "bool, not 1"),
        ("training.sde", 3, "str, not 3"),
        ("seed", None, "int, not None"),
        ("model", 3, "group of fields"),
    ],
)
def test_a_value_of_another_type(field, value, words):
    """As from Python, or from JSON: the command line has typed flags."""
    changed = config("configs/digits.py", *SMALL).to_dict()
    *section, name = field.split(".")
    (changed[section[0]] if section else changed)[name] = value
    with pytest.raises(UserError, match=words):
        check_config(ConfigDict(changed))


def test_a_whole_number_is_a_number():
    changed = config("configs/digits.py", *SMALL).to_dict()
    changed["model"]["dropout"] = 0
    check_config(ConfigDict(changed))


def test_images_that_are_padded_are_said(capsys):
    digits_of_another_size = data.load("digits", image_size=10)
    assert digits_of_another_size.shape == (10, 10, 1)
    (told,) = capsys.readouterr().out.splitlines()
    assert "images of 8x8 are padded with zeros to 10x10 (image_size)" in told
    assert told.endswith("bits/dim are of the padded images, whose border costs next to nothing")
    data.load("digits", image_size=8)
    assert "padded" not in capsys.readouterr().out


def test_rolling_back_is_set_by_fields(monkeypatch, tmp_path):
    """The loop gets as many times as the fields say, and batches in another order."""
    given = []

    def run(training, state, places):
        given.append(training)
        return state

    monkeypatch.setattr(loop.Loop, "run", run)
    for name, fields in (("a", ()), ("b", ("training.on_nan=Rollback", "training.rollbacks=2"))):
        experiment = digits(*fields)
        run_train(experiment, Workdir(tmp_path / name))
    images, (without, training) = experiment.training.data, given
    assert (without.limit, training.limit) == (0, 2)
    found = training.batches(1)(3)
    np.testing.assert_array_equal(found.indices, images.reordered(1).indices(3))
    assert (found.indices != images.indices(3)).any()


@pytest.mark.parametrize(
    ("name", "sde"),
    [
        ("VPSDE", VP(0.1, 20.0)),
        ("subvpsde", SubVP(0.1, 20.0)),
        ("linearVESDE", LinearVE(50.0)),
    ],
)
def test_sdes_by_name(name, sde):
    assert digits(f"training.sde={name}").model.sde == sde


def test_the_geometric_ve_conditions_on_sigma():
    experiment = digits("training.sde=VESDE", "model.embedding_type=fourier")
    assert experiment.model.sde == VE(0.01, 50.0)
    assert experiment.model.network.log_labels


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ((), ("eps", "time_999")),
        (("training.sde=subvpsde",), ("eps", "time_999")),
        (("training.sde=vesde", "model.embedding_type=fourier"), ("score", "sigma")),
        (("training.sde=vesde", "model.embedding=log_snr"), ("eps", "log_snr")),
        (("model.parameterization=v",), ("v", "time_999")),
        (("model.parameterization=edm", "model.embedding=log_snr"), ("edm", "log_snr")),
    ],
)
def test_the_prediction_and_the_time_input_of_networks(fields, expected):
    model = digits(*fields).model
    assert (model.prediction, model.time_input) == expected


def test_a_network_that_predicts_v_gives_the_noise():
    plain, model = digits().model, digits("model.parameterization=v").model
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 1)), jnp.float32)
    t = jnp.asarray([0.1, 0.8])
    output = plain.noise(digits_params())(x, t)
    alpha, sigma = (c[:, None, None, None] for c in (plain.sde.alpha(t), plain.sde.sigma(t)))
    found = model.noise(digits_params())(x, t)
    np.testing.assert_allclose(found, alpha * output + sigma * x, rtol=1e-4, atol=1e-5)


def test_names_of_choices_in_upper_case():
    network = digits(
        "model.resblock_type=DDPM", "model.progressive=Output_Skip", "model.nonlinearity=ReLU",
        "model.embedding_type=Fourier", "model.progressive_input=Residual",
        "model.progressive_combine=CAT", "model.name=NCSNpp", "data.dataset=Digits",
    ).model.network  # fmt: skip
    assert (network.resblock_type, network.progressive, network.nonlinearity) == (
        "ddpm", "output_skip", "relu",
    )  # fmt: skip
    assert (network.embedding_type, network.progressive_input) == ("fourier", "residual")
    assert network.progressive_combine == "cat"
    assert digits("deq.variant=ImageNet32").flow.network.variant == "imagenet32"


@pytest.mark.parametrize("offset", [True, False])
def test_the_loss_of_a_flow_counts_the_step_to_the_data_where_the_config_says_so(
    offset, monkeypatch
):
    """And so does the bound of test images that is logged beside it."""
    flow = digits(f"deq.offset={offset}").flow
    assert isinstance(flow.decoder, GaussianDecoder if offset else Entropy)
    used = []
    monkeypatch.setattr(training, "_quick_bound", lambda *given: used.append(given[-1]) or {})
    flow.measure({}, {}, np.zeros((2, 8, 8, 1), int), jax.random.key(0))
    assert used == [flow.decoder]


def test_estimators_and_solvers():
    def estimators(*fields):
        return digits(*fields)

    default = estimators("eval.nodes=9", "eval.probes=3")
    assert default.by_ode == ByOde(Hutchinson(3), Multistep())
    assert default.pilot
    fixed = estimators("eval.solver=multistep", "eval.nodes=9")
    assert fixed.by_ode.solver == Multistep(9) and not fixed.pilot
    assert estimators("eval.divergence=orthogonal").by_ode.divergence == Orthogonal(2)
    assert estimators("eval.divergence=hierarchical").by_ode.divergence == Hierarchical(2)
    published = estimators("eval.solver=rk45_reference", "eval.probes=1")
    assert published.by_ode.solver == PublishedRK45(1e-5, 1e-5)
    other = estimators("eval.divergence=gaussian", "eval.solver=adaptive", "eval.tolerance=1e-3")
    other = other.by_ode
    assert other.divergence == Hutchinson(other.divergence.probes, "gaussian")
    assert other.solver == Doubling(1e-3 * np.log(2))  # in nats
    assert estimators("eval.divergence=exact").by_ode.divergence == Exact()
    assert estimators("eval.dsm=False").by_elbo.matching == "sliced"


def test_choose_names_the_nearest_and_the_rest():
    with pytest.raises(UserError, match="mean apple"):
        choose({"apple": 1, "b": 2}, "aple", "x")
    assert choose({"apple": 1}, "Apple", "x") == 1


def test_the_config_of_an_experiment_is_plain_json():
    written = digits().config
    assert written["model"]["ch_mult"] == [1]
    assert written["training"]["smallest_time"] == 1e-5


@pytest.mark.parametrize(
    "field",
    [
        "model.nf=8", "model.ch_mult=(2,)", "eval.dtype=bfloat16", "model.fir=True",
        "model.beta_max=10.0", "model.embedding=log_snr", "model.parameterization=v",
        "training.smallest_time=1e-3", "data.centered=False",
    ],
)  # fmt: skip
def test_the_description_of_a_model_differs_from_others(field):
    plain = digits().model.describe()
    assert json.loads(json.dumps(plain)) == plain
    assert digits("optim.lr=1.0", "eval.nodes=9").model.describe() == plain
    assert digits(field).model.describe() != plain


def test_states_and_their_template():
    training = digits().training
    state, template = training.init_state(), training.template
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (state, template))
    assert shapes[0] == shapes[1]
    jax.tree.map(np.testing.assert_array_equal, state.params, digits_params())
    other = digits("seed=1").training.init_state().params
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(other), strict=True)
    )


# The published loss

OBJECTIVES = {
    "plain": (False, False),
    "likelihood": (True, False),
    "likelihood and importance": (True, True),
}


@pytest.mark.parametrize("sde", ["vpsde", "subvpsde"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("reduce_mean", [True, False])
def test_losses_are_the_published_formula(sde, objective, reduce_mean):
    """Plain ||eps - z||^2, g^2 ||score + z / sigma||^2, and without g^2/sigma^2 where t bears it.

    The mean over pixels, or half their sum.
    """
    likelihood, importance = OBJECTIVES[objective]
    experiment = digits(
        f"training.sde={sde}",
        f"training.likelihood_weighting={likelihood}",
        f"training.importance_weighting={importance}",
        f"training.reduce_mean={reduce_mean}",
        "training.stratified=False",
        "data.uniform_dequantization=False",
    )
    params, x, key = digits_params(), jnp.asarray(experiment.data.train[:6]), jax.random.key(3)
    losses = experiment.objective.losses(params, x, key)

    key_t, key_z = jax.random.split(jax.random.split(key, 3)[1])
    t, _ = experiment.objective.times(key_t, len(x))
    y = 2 * x / 16.0 - 1
    z = normal(key_z, y)
    wide = (..., None, None, None)
    sde = experiment.model.sde
    x_t = sde.alpha(t)[wide] * y + sde.sigma(t)[wide] * z
    eps = experiment.model.noise(params)(x_t, t)
    if likelihood and not importance:
        score = -eps / sde.sigma(t)[wide]
        square = sde.g2(t)[wide] * jnp.square(score + z / sde.sigma(t)[wide])
    else:
        square = jnp.square(eps - z)
    mean = jnp.mean(square, axis=(1, 2, 3))
    expected = mean if reduce_mean else 64 * mean / 2
    np.testing.assert_allclose(losses, expected, rtol=2e-4)


@pytest.mark.parametrize("dequantize", [False, True])
def test_training_images_are_dequantized_where_configured(dequantize, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "scoremle.likelihood.by_loss.drawn_loss",
        lambda noise, sde, y, key, **_: seen.append(np.asarray(y)) or (jnp.zeros(len(y)),) * 3,
    )
    experiment = digits(f"data.uniform_dequantization={dequantize}")
    x = jnp.full((4, 8, 8, 1), 12, jnp.uint8)
    experiment.objective.loss(None, x, jax.random.key(0))
    (y,) = seen
    if dequantize:
        u = (y + 1) / 2 * 17 - 12
        assert u.min() >= -1e-5 and u.max() <= 1 + 1e-5 and abs(u.mean() - 0.5) < 0.1
    else:
        np.testing.assert_allclose(y, 0.5)


def test_no_two_parts_of_a_step_have_the_same_key(monkeypatch):
    """Dequantization, the loss and dropout; of what is logged, the loss and the bound."""
    by_loss, used, key = "scoremle.likelihood.by_loss", [], jax.random.key(3)

    class Noted(Uniform):
        def __call__(self, key, x):
            used.append(key)
            return super().__call__(key, x)

    class Keyed:
        def __init__(self, key):
            self.key = key

        def __call__(self, x, t):
            return x

    def loss(noise, sde, y, key, **_):
        used.extend([noise.key, key])
        return (jnp.zeros(len(y)),) * 3

    def different(count):
        found = {tuple(jax.random.key_data(each).tolist()) for each in [key, *used]}
        return len(used) == count and len(found) == 1 + count

    objective = digits("data.uniform_dequantization=True").objective
    x = np.zeros((2, 8, 8, 1), int)
    monkeypatch.setattr(f"{by_loss}.Uniform", Noted)
    monkeypatch.setattr(f"{by_loss}.drawn_loss", loss)
    monkeypatch.setattr(type(objective.model), "noise", lambda self, params, key: Keyed(key))
    objective.loss(None, x, key)
    assert different(3)
    used.clear()
    monkeypatch.setattr(training, "_quick_bound", lambda *given: used.append(given[4]) or {})
    monkeypatch.setattr(
        type(objective), "losses", lambda self, params, x, key: used.append(key) or x
    )
    objective.measure(None, x, key)
    assert different(2)


def test_each_writer_of_a_list_is_chosen():
    assert logged_by(ConfigDict({"logging": " MLflow,wandb,"})) == ("mlflow", "wandb")
    assert logged_by(ConfigDict({"logging": ""})) == ()


def test_dropout_acts_in_training_alone():
    experiment, plain = digits("model.dropout=0.5"), digits()
    x, key = jnp.asarray(experiment.data.train[:6]), jax.random.key(3)
    value, more = experiment.training.objective.loss(digits_params(), x, key)
    losses = experiment.objective.losses(digits_params(), x, key)
    undropped = plain.objective.loss(digits_params(), x, key)[0]
    np.testing.assert_allclose(losses.mean(), undropped, rtol=1e-6)
    assert abs(value - losses.mean()) > 1e-4
    assert more.keys() == {"loss_std"}


def test_bits_of_test_images_while_training_have_the_error_of_their_mean(monkeypatch):
    bpd = np.array([1.0, 2.0, 4.0, 6.0])
    found = {"bpd": jnp.asarray(bpd)}
    monkeypatch.setattr(training, "ByElbo", lambda draws, **_: lambda *_: found)
    images = jnp.zeros((4, 8, 8, 1), jnp.uint8)
    found = training._quick_bound(digits().model, {}, Uniform(), images, jax.random.key(0))
    assert found["bpd"] == bpd.mean()
    assert found["bpd_stderr"] == pytest.approx(bpd.std(ddof=1) / 2)


# Fields, another value of each, and where it is found in the experiment.
REACHES = {
    "seed": (7, "seed"), "training.batch_size": (9, "data.batch_size"),
    "training.n_iters": (99, "training.schedule.n_iters"),
    "training.n_jitted_steps": (3, "training.schedule.n_jitted_steps"),
    "training.log_freq": (3, "training.schedule.log_freq"),
    "training.eval_freq": (3, "training.schedule.eval_freq"),
    "training.snapshot_freq": (3, "training.schedule.snapshot_freq"),
    "training.snapshot_freq_for_preemption": (
        3, "training.schedule.snapshot_freq_for_preemption",
    ),
    "training.stratified": (False, "flow.stratified"),
    "training.smallest_time": (1e-3, "model.eps"),
    "data.random_flip": (True, "data.random_flip"), "data.levels": (4, "data.levels"),
    "deq.n_iters": (77, "flow_training.schedule.n_iters"),
    "deq.ema_rate": (0.5, "flow_training.ema_rate"),
    "model.ema_rate": (0.25, "training.ema_rate"),
    **{f"deq.{name}": (16, f"flow.network.{name}")
       for name in ("filters", "components", "blocks", "couplings", "heads")},
    "deq.variant": ("imagenet32", "flow.network.variant"),
    "eval.probes": (3, "by_ode.divergence.probes"),
    "eval.importance_samples": (4, "by_ode.samples"),
    "eval.bound_draws": (5, "by_elbo.draws"), "eval.num_repeats": (6, "evaluation.num_repeats"),
    "sampling.smallest_time": (0.01, "sampler.eps"), "sampling.steps": (33, "sampler.evaluations"),
    **{f"model.{name}": (value, f"model.network.{name}") for name, value in {
        "nf": 8, "ch_mult": (1, 2), "num_res_blocks": 2, "attn_resolutions": (4,),
        "dropout": 0.5, "resblock_type": "ddpm", "resamp_with_conv": False,
        "conditional": False, "fir": True, "fir_kernel": (1, 2, 1), "skip_rescale": False,
        "progressive": "residual", "progressive_input": "residual",
        "progressive_combine": "cat", "embedding_type": "fourier", "fourier_features": True,
        "fourier_scale": 3.0, "trainable_embedding": True, "nonlinearity": "elu",
        "init_scale": 0.5, "remat": True,
    }.items()},
    "model.beta_min": (0.2, "model.sde.schedule.beta_min"),
    "model.beta_max": (10.0, "model.sde.schedule.beta_max"),
}  # fmt: skip
# Of networks and SDEs of other kinds.
OF_VDM = "vdm/cifar10", *DIGITS, "model.nf=32"
OF_SIGMA = "digits", *LW_IS, *SMALL, "training.sde=vesde", "model.embedding_type=fourier"
REACHES_OF_OTHERS = {
    "model.sigma_min": (OF_SIGMA, 0.5, "model.sde.schedule.sigma_min"),
    "model.sigma_max": (OF_SIGMA, 9.0, "model.sde.schedule.sigma_max"),
    "model.log_snr_min": (OF_VDM, -4.0, "model.sde.schedule.log_snr_min"),
    "model.log_snr_max": (OF_VDM, 9.0, "model.sde.schedule.log_snr_max"),
    "model.num_res_blocks": (OF_VDM, 3, "model.network.num_res_blocks"),
    "model.attn_resolutions": (OF_VDM, (8,), "model.network.attn_resolutions"),
    "model.nf": (OF_VDM, 64, "model.network.nf"),
    "model.dropout": (OF_VDM, 0.5, "model.network.dropout"),
    "model.fourier_features": (OF_VDM, False, "model.network.fourier_features"),
    "model.remat": (OF_VDM, True, "model.network.remat"),
    "sampling.steps": (("digits", "sampling.method=euler"), 12, "sampler.evaluations"),
    "eval.nodes": (("digits", "eval.solver=multistep"), 9, "by_ode.solver.steps"),
}  # fmt: skip


@pytest.mark.parametrize("field", [*REACHES, *(f"{name}!" for name in REACHES_OF_OTHERS)])
def test_a_field_reaches_what_it_sets(field):
    """As it is, and otherwise."""
    name, table = field.removesuffix("!"), REACHES_OF_OTHERS if "!" in field else REACHES
    *others, value, place = table[name]
    others = others[0] if others else ("digits", *LW_IS, *SMALL, "sampling.method=ode")
    found, usual = (
        attrgetter(place)(untraced(*others, *more)) for more in ((f"{name}={value}",), ())
    )
    if name == "sampling.steps" and not field.endswith("!"):
        found -= 2  # the first of a multistep method, and the one that removes noise
    assert found == value != usual


def test_ends_of_vdm_s_log_snr_are_those_of_its_network():
    network = untraced(*OF_VDM, "model.log_snr_min=-4.0", "model.log_snr_max=9.0").model.network
    assert (network.gamma_min, network.gamma_max) == (-9.0, 4.0)
    codes = "latent_size=20", "latent_k=5", "encoder_blocks=3", "schedule=polynomial"
    of_codes = untraced(*OF_VDM, *(f"model.{field}" for field in codes)).model
    assert (of_codes.encoder.logits, of_codes.encoder.num_res_blocks, of_codes.on) == (20, 3, 5)
    assert of_codes.encoder.nf == 32 and of_codes.learned == "polynomial"


def test_the_optimizer_has_its_fields(monkeypatch):
    called = {}

    def made(**fields):
        called.update(fields)
        return optax.identity()

    monkeypatch.setattr(building, "make_optimizer", made)
    fields = {"lr": 0.5, "beta1": 0.1, "beta2": 0.2, "eps": 0.3, "weight_decay": 0.4,
              "warmup": 5, "grad_clip": 0.6}  # fmt: skip
    flags = [f"optim.{name}={value}" for name, value in fields.items()]
    for name in ("Adam", "AdamW"):
        untraced("digits", *flags, f"optim.optimizer={name}")
        assert called == fields | {"decay_biases": name == "Adam"}


# Samplers


@pytest.mark.parametrize(
    ("fields", "evaluations"),
    [
        (("method=ode", "steps=4"), 4 + 1 + 1),
        (("method=ode", "steps=4", "noise_removal=False"), 4 + 1),
        (("method=ddim", "steps=4"), 4 + 1),
        (("method=dpm_solver", "steps=4", "noise_removal=False"), 4),
        (("method=euler", "steps=4"), 4),
        (("method=pc", "steps=4", "corrector=none"), 4),
        (("method=pc", "steps=21", "corrector=ald", "n_steps_each=2"), 21 * 3),
        (("method=pc", "steps=21", "predictor=None", "corrector=langevin"), 21),
    ],
)
def test_samplers_say_how_often_they_evaluate_the_network(fields, evaluations):
    experiment = digits(*(f"sampling.{field}" for field in fields))
    sampler, sde = experiment.sampler, experiment.model.sde
    calls = []

    def noise(x, t):
        jax.debug.callback(lambda: calls.append(t))  # when it runs, not when it is traced
        return 0.1 * x

    x = jax.jit(lambda key: sampler.draw(noise, sde, key, (2, 3), eps=sampler.eps))(
        jax.random.key(0)
    )
    jax.effects_barrier()
    assert x.shape == (2, 3) and jnp.isfinite(x).all()
    assert len(calls) == sampler.evaluations == evaluations


def test_a_predictor_corrector_has_its_fields():
    fields = ("method=pc", "steps=30", "snr=0.3", "corrector=ald", "n_steps_each=2",
              "probability_flow=True", "noise_removal=False", "predictor=reverse_diffusion")
    sampler = digits(*(f"sampling.{field}" for field in fields)).sampler
    assert sampler.draw.keywords["method"] == predictor_corrector.PredictorCorrector(
        30, predictor_corrector.reverse_diffusion, predictor_corrector.ald, 0.3, 2, True, False
    )
    euler = digits("sampling.method=euler", "sampling.steps=9", "sampling.noise_removal=False")
    assert euler.sampler.draw.keywords == {"steps": 9, "denoise": False}
    for corrector, mixes in (("ald", False), ("none", False), ("langevin", True)):
        flags = "sampling.method=pc", f"sampling.corrector={corrector}"
        assert digits(*flags).sampler.mixes == mixes


@pytest.mark.parametrize("method", ["ode", "ddim", "dpm_solver"])
def test_noise_removal_ends_at_the_estimate_of_the_data(method):
    """Of data that are all zero, whose noise is known, nothing but the noise was left."""
    fields = (f"sampling.method={method}", "sampling.steps=30")
    sde = digits(*fields).model.sde

    def noise(x, t):
        return x / sde.sigma(t)[:, None]

    def spread(experiment):
        sampler = experiment.sampler
        draw = jax.jit(lambda key: sampler.draw(noise, sde, key, (500, 2), eps=sampler.eps))
        return draw(jax.random.key(1)).std()

    assert spread(digits(*fields)) < 1e-6
    left = spread(digits(*fields, "sampling.noise_removal=False"))
    assert left == pytest.approx(float(sde.sigma(jnp.float32(1e-3))), rel=0.1)
