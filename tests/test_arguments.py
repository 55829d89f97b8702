"""Whatever a public function can't take: one line, which names the argument."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.oracles import SDES, Gaussian
from helpers.schedules import Curved

import scoremle
from scoremle.core.arguments import as_index, check_seed
from scoremle.core.betas import betas
from scoremle.core.bijectors import AtTime
from scoremle.data.readers.base import Options
from scoremle.errors import UserError, as_flag, named_as
from scoremle.likelihood.control_variate_fit import fit_control
from scoremle.likelihood.labels import ByLabels
from scoremle.likelihood.ode import ode_decode
from scoremle.likelihood.pilot import Pilot, choose_within
from scoremle.likelihood.published_rk45 import PublishedRK45
from scoremle.likelihood.steps import BySteps
from scoremle.nn.ddpmpp import _check_fields as ddpmpp_check
from scoremle.nn.flowpp import FlowPP
from scoremle.nn.flowpp import _check as flowpp_check
from scoremle.nn.vdm import VDMNet
from scoremle.quality.metrics import frechet_distance, kernel_distance, precision_recall
from scoremle.sampling.conditional import colourise, guided, inpaint
from scoremle.sampling.ode import denoise, interpolate, ode_draw
from scoremle.zoo.adm import ADM
from scoremle.zoo.adm import _check_fields as adm_check
from scoremle.zoo.unet2d import UNet2D
from scoremle.zoo.unet2d_fields import check_fields

SDE, KEY, EPS = SDES["vp"], jax.random.key(0), 1e-3
DATA = Gaussian.random(3, 2, 0.6)
NOISE = DATA.noise(SDE)
X = DATA.draw(0, 8).astype(np.float32)
IMAGES = np.zeros((4, 1, 2, 1), np.uint8)
SHARES = np.full(24, 1 / 24)
TIMES = scoremle.UniformLogSNR(SDE, EPS)
FEW = scoremle.Multistep(4)


def of_pixels(x, t):
    return SDE.sigma(t)[:, None, None, None] * x


REALS = scoremle.ScoreModel(NOISE, SDE, EPS, (2,), solver=FEW)
PIXELS = scoremle.ScoreModel(of_pixels, SDE, EPS, (1, 2, 1), scoremle.Pixels(8), solver=FEW)
ONES = np.ones(8)
SAMPLES = scoremle.Samples(X, ONES, ONES, 0 * ONES, X, ONES.astype(int))
ONE_SAMPLE = scoremle.Samples(X[:1], ONES[:1], ONES[:1], 0 * ONES[:1], X[:1], np.ones(1, int))


def draw(keys):
    return scoremle.ode_log_likelihood(NOISE, SDE, X, KEY, eps=EPS, solver=FEW), jnp.zeros(len(X))


# Each function, and arguments that it takes.
CALLS = {
    # A model
    "ScoreModel": (scoremle.ScoreModel, {"noise": NOISE, "sde": SDE, "eps": EPS, "shape": (2,)}),
    "log_prob": (REALS.log_prob, {"x": X, "key": KEY}),
    "within": (REALS.within, {"tolerance": 0.1, "x": X}),
    "bound": (REALS.elbo, {"x": X, "key": KEY, "draws": 4}),
    "profile": (REALS.profile, {"data": X, "bins": 2, "draws": 2}),
    "encode": (REALS.encode, {"x": X}),
    "decode": (REALS.decode, {"z": X}),
    "score": (PIXELS.score, {"images": IMAGES}),
    "calibrated": (PIXELS.calibrated, {"images": IMAGES}),
    "fit_decoder": (PIXELS.fit_decoder, {"images": IMAGES}),
    "check": (REALS.check, {"data": np.tile(X, (16, 1))}),
    "sample": (REALS.sample, {"n": 3, "key": KEY}),
    "load": (scoremle.load, {"place": "digits"}),
    "Scorer": (scoremle.Scorer, {"model": lambda: PIXELS}),
    "noise_fn": (scoremle.noise_fn, {"network": NOISE, "sde": SDE}),
    "Pixels": (scoremle.Pixels, {}),
    "of_points": (scoremle.Pixels.of_points, {"levels": 17, "first": -1, "last": 1}),
    "bits_per_dim": (
        scoremle.bits_per_dim, {"log_prob": X[:, 0], "pixels": PIXELS.pixels, "dims": 2},
    ),
    "of_passes": (scoremle.Scores.of_passes, {"values": {"bpd": X}, "dims": 2}),
    "data.load": (scoremle.data.load, {"name": "digits"}),
    "reweigh": (scoremle.weights.reweigh, {"samples": SAMPLES, "log_target": lambda x: x[:, 0]}),
    # Of arrays
    "ode_log_likelihood": (
        scoremle.ode_log_likelihood,
        {"noise": NOISE, "sde": SDE, "x": X, "key": KEY, "eps": EPS, "solver": FEW},
    ),
    "ode_decode": (ode_decode, {"noise": NOISE, "sde": SDE, "z": X, "key": KEY, "eps": EPS}),
    "elbo": (
        scoremle.elbo,
        {"noise": NOISE, "sde": SDE, "x": X, "key": KEY, "eps": EPS, "times": TIMES, "draws": 4},
    ),
    "fit_control": (fit_control, {"noise": NOISE, "sde": SDE, "x": X, "key": KEY, "eps": EPS}),
    "importance_bound": (scoremle.importance_bound, {"draw": draw, "keys": KEY, "samples": 2}),
    "choose_within": (
        choose_within,
        {"noise": NOISE, "sde": SDE, "x": X, "tolerance": 0.1, "eps": EPS},
    ),
    "Pilot": (
        Pilot,
        {"solve": lambda *steps: None, "divergence": scoremle.Exact(), "bits": 1.0, "finest": 128},
    ),
    "denoising_loss": (
        scoremle.denoising_loss,
        {"noise": NOISE, "sde": SDE, "x": X, "key": KEY, "times": TIMES, "weighting": "plain"},
    ),
    "fit": (
        scoremle.fit,
        {"loss": lambda params, x, key: params, "params": 0.0, "batch": lambda i: X, "steps": 1,
         "optimizer": optax.sgd(0.1)},
    ),
    # Samplers
    "ode_sample": (scoremle.ode_sample, {"noise": NOISE, "sde": SDE, "z": X, "eps": EPS}),
    "ode_encode": (scoremle.ode_encode, {"noise": NOISE, "sde": SDE, "x": X, "eps": EPS}),
    "ode_draw": (ode_draw, {"noise": NOISE, "sde": SDE, "key": KEY, "shape": (3, 2), "eps": EPS}),
    "denoise": (denoise, {"noise": NOISE, "sde": SDE, "x": X, "eps": EPS}),
    "ddim_sample": (
        scoremle.ddim_sample, {"noise": NOISE, "sde": SDE, "z": X, "eps": EPS, "steps": 2},
    ),
    "dpm_solver_sample": (
        scoremle.dpm_solver_sample, {"noise": NOISE, "sde": SDE, "z": X, "eps": EPS, "steps": 2},
    ),
    "euler_sample": (
        scoremle.euler_sample,
        {"noise": NOISE, "sde": SDE, "key": KEY, "shape": (3, 2), "eps": EPS, "steps": 2},
    ),
    "pc_sample": (
        scoremle.pc_sample, {"noise": NOISE, "sde": SDE, "key": KEY, "shape": (3, 2), "eps": EPS},
    ),
    "PredictorCorrector": (scoremle.PredictorCorrector, {}),
    "inpaint": (
        inpaint,
        {"noise": NOISE, "sde": SDE, "key": KEY, "x": X, "known": [True, False], "eps": EPS},
    ),
    "colourise": (
        colourise,
        {"noise": NOISE, "sde": SDE, "key": KEY, "grey": np.zeros((1, 2, 2, 1)), "eps": EPS},
    ),
    "guided": (guided, {"noise": NOISE, "sde": SDE, "log_prob": lambda x, t: t}),
    # Solvers, traces, times, estimators
    "Multistep": (scoremle.Multistep, {}),
    "Doubling": (scoremle.Doubling, {}),
    "PublishedRK45": (PublishedRK45, {}),
    "Hutchinson": (scoremle.Hutchinson, {}),
    "Orthogonal": (scoremle.Orthogonal, {}),
    "Hierarchical": (scoremle.Hierarchical, {}),
    "Exact": (scoremle.Exact, {}),
    "FixedProbe": (scoremle.FixedProbe, {"vectors": np.ones((1, 8, 2))}),
    "UniformTime": (scoremle.UniformTime, {"eps": EPS}),
    "UniformTime(...)": (scoremle.UniformTime(EPS), {"key": KEY, "n": 3}),
    "UniformLogSNR": (scoremle.UniformLogSNR, {"sde": SDE, "eps": EPS}),
    "AlphaSquared": (scoremle.AlphaSquared, {"sde": SDE, "eps": EPS}),
    "BinnedLogSNR": (scoremle.BinnedLogSNR, {"sde": SDE, "eps": EPS, "shares": SHARES}),
    "ByOde": (scoremle.ByOde, {}),
    "ByElbo": (scoremle.ByElbo, {}),
    "BySteps": (BySteps, {}),
    "ByLabels": (ByLabels, {"of_one": scoremle.ByOde(), "labels": 2}),
    "TruncatedNormal": (scoremle.TruncatedNormal, {"sde": SDE, "start": EPS}),
    "Uniform(...)": (scoremle.Uniform(), {"key": KEY, "x": np.zeros((3, 2), int)}),
    # Noise
    "SDE": (scoremle.SDE, {"kernel": "vp", "schedule": scoremle.Cosine(), "prior_std": 1.0}),
    "VP": (scoremle.VP, {}),
    "SubVP": (scoremle.SubVP, {}),
    "VE": (scoremle.VE, {}),
    "LinearVE": (scoremle.LinearVE, {}),
    "Cosine": (scoremle.Cosine, {}),
    "LinearLogSNR": (scoremle.LinearLogSNR, {}),
    "LinearBeta": (scoremle.LinearBeta, {}),
    "LinearSigma": (scoremle.LinearSigma, {}),
    "GeometricSigma": (scoremle.GeometricSigma, {}),
    "KarrasSigma": (scoremle.KarrasSigma, {}),
    "Discrete": (scoremle.Discrete, {"log_snrs": np.asarray([3.0, 1.0])}),
    "betas": (betas, {"name": "linear"}),
    "of_betas": (scoremle.Discrete.of_betas, {"betas": np.asarray([0.1, 0.2])}),
    "prior_sample": (SDE.prior_sample, {"key": KEY, "shape": (3, 2)}),
    "Affine": (scoremle.Affine, {"shift": 0.0, "scale": 1.0}),
    "standardizing": (scoremle.Affine.standardizing, {"x": X}),
    "Bounded": (scoremle.Bounded, {}),
    "Chain": (scoremle.Chain, {"maps": (scoremle.Affine(0.0, 1.0),)}),
    # Samples
    "features": (lambda features: frechet_distance(features, X), {"features": X}),
    "kernel_distance": (kernel_distance, {"a": X, "b": X}),
    "precision_recall": (precision_recall, {"samples": X, "reference": X}),
    "Samples": (
        scoremle.Samples,
        {"x": X, "log_prob": ONES, "solver_error": ONES, "probe_stderr": ONES, "latent": X,
         "evaluations": ONES},
    ),
    "interpolate": (interpolate, {"z0": X, "z1": X, "weights": [0.0, 0.5]}),
}  # fmt: skip

NO_NUMBER = ("3", None, [1.0, 2.0])
NO_COUNT = (*NO_NUMBER, True, 2.5, 2.0, np.nan, -1)
COUNT = (*NO_COUNT, 0)
NUMBER = (*NO_NUMBER, np.nan, np.inf)
POSITIVE = (*NUMBER, 0.0, -1.0)
WITHIN_ONE_OR_ZERO = (*NUMBER, -1.0, 1.0, 1.5)
WITHIN_ONE = (*WITHIN_ONE_OR_ZERO, 0.0)
SEED = (*NO_COUNT, 2**32)
NO_FUNCTION = ("net", None, X, {"w": X})
WORD = ("nonsense", 3, ["plain"])
NO_KEY = (0, "0", None, np.zeros(3, np.uint32), jax.random.key(0, impl="rbg"))
MASKED = np.ma.masked_array(X, np.abs(X) > 0)
NO_ARRAY = ("3", [[1.0, 2.0], [3.0]], np.asarray([["a", "b"]]), X.astype(object), MASKED)
NOT_FINITE = np.where(np.arange(8)[:, None] == 3, np.nan, X)
BEYOND_FLOAT32 = np.full((8, 2), 1e300)
DATA_OF_REALS = (
    *NO_ARRAY, NOT_FINITE, BEYOND_FLOAT32, np.inf * X, X.astype(int), X > 0, X + 1j, 3.0,
)  # fmt: skip
SHAPE = (3, "2", (2.5,), (-1,), (2, 0), ("a",))
SHAPE_OF_SEVERAL = (*SHAPE, ())
IMAGES_OF_INTEGERS = (*NO_ARRAY, IMAGES.astype(float), IMAGES[0])
INDEX = (*NO_ARRAY[:3], [0.0, 1.0, 2.0, 3.0], [0, 1, 2, -1], [0, 1, 2, 2**64], [0, 1], 3)
CONDITION = (*NO_ARRAY[::2], np.nan * np.ones((1, 2)), np.zeros((9, 2)))
NO_TARGETS = (*NO_NUMBER, X, X[:, 0] + 1j, np.full(8, np.inf), np.full(8, -np.inf))
NO_TIMES = (*WORD, None, scoremle.UniformTime)
NO_SDE = ("vp", None, 3, scoremle.VP)
NO_PART = ("informed", 3, scoremle.Affine)
NO_FEATURES = (*NO_ARRAY, NOT_FINITE, X + 1j)
NO_SOLVER = (*WORD, None, scoremle.Multistep, PublishedRK45())

TABLE = [
    ("ScoreModel", {"noise": NO_FUNCTION, "sde": NO_SDE, "eps": WITHIN_ONE, "shape": SHAPE,
                    "decoder_scale": POSITIVE[:1], "pixels": (256, X)}),
    ("log_prob", {"x": DATA_OF_REALS, "key": NO_KEY, "condition": CONDITION,
                  "dtype": (*WORD, "float16"),
                  "tolerance": POSITIVE[:1]}),
    ("within", {"tolerance": (*POSITIVE, True), "x": DATA_OF_REALS, "seed": SEED}),
    ("bound", {"x": DATA_OF_REALS, "key": NO_KEY, "draws": COUNT, "condition": CONDITION}),
    ("profile", {"data": DATA_OF_REALS, "index": INDEX, "bins": COUNT, "draws": (*COUNT, 1),
                 "batch_size": COUNT, "seed": SEED, "condition": CONDITION}),
    ("encode", {"x": DATA_OF_REALS, "condition": CONDITION}),
    ("decode", {"z": DATA_OF_REALS, "condition": CONDITION}),
    ("score", {"images": IMAGES_OF_INTEGERS, "index": INDEX, "passes": COUNT, "seed": SEED,
               "batch_size": tuple(bad for bad in COUNT if bad is not None),
               "condition": CONDITION, "tolerance": POSITIVE[:1],
               "estimator": (*WORD, scoremle.ByOde), "dequantizer": (*WORD, scoremle.Uniform)}),
    ("calibrated", {"images": IMAGES_OF_INTEGERS, "seed": SEED}),
    ("fit_decoder", {"seed": SEED}),
    ("check", {"data": DATA_OF_REALS, "condition": CONDITION}),
    ("sample", {"n": NO_COUNT, "key": (*NO_KEY, jax.random.split(KEY, 3)), "batch_size": COUNT,
                "condition": CONDITION, "sampler": (*WORD, scoremle.PredictorCorrector())}),
    ("load", {"checkpoint": ("3", 2.5, -1)}),
    ("Scorer", {"passes": COUNT, "seed": SEED, "batch_size": COUNT}),
    ("noise_fn", {"network": NO_FUNCTION, "sde": NO_SDE, "prediction": WORD,
                  "time_input": (*WORD, X),
                  "sigma_data": POSITIVE}),
    ("Pixels", {"levels": (*COUNT, 1, 2**16 + 1), "low": (*NUMBER, True, 1.0),
                "high": (*NUMBER, -1.0)}),
    ("of_points", {"levels": COUNT, "first": NUMBER, "last": NUMBER}),
    ("bits_per_dim", {"dims": COUNT}),
    ("of_passes", {"dims": COUNT, "values": ({}, {"bpd": X[:, 0]})}),
    ("data.load", {"name": WORD[1:], "path": WORD[1:], "batch_size": COUNT, "seed": SEED,
                   "image_size": NO_COUNT, "num_channels": NO_COUNT, "levels": NO_COUNT}),
    ("reweigh", {"samples": (X, None, 3, ONE_SAMPLE),
                 "log_target": (X, *((lambda x, bad=bad: bad) for bad in NO_TARGETS))}),
    ("ode_log_likelihood", {"sde": NO_SDE, "x": DATA_OF_REALS, "key": NO_KEY, "eps": WITHIN_ONE,
                            "condition": CONDITION, "dtype": WORD}),
    ("elbo", {"sde": NO_SDE, "x": DATA_OF_REALS, "key": NO_KEY, "eps": WITHIN_ONE, "draws": COUNT,
                          "matching": WORD, "times": NO_TIMES}),
    ("fit_control", {"sde": NO_SDE, "x": DATA_OF_REALS, "key": NO_KEY, "eps": WITHIN_ONE,
                     "matching": WORD}),
    ("importance_bound", {"keys": NO_KEY, "samples": COUNT}),
    ("choose_within", {"sde": NO_SDE, "x": DATA_OF_REALS, "tolerance": POSITIVE,
                       "eps": WITHIN_ONE, "seed": SEED, "condition": CONDITION}),
    ("Pilot", {"finest": (*(bad for bad in COUNT if bad is not None), 127)}),
    ("denoising_loss", {"sde": NO_SDE, "x": DATA_OF_REALS, "key": NO_KEY, "weighting": WORD,
                        "times": NO_TIMES}),
    ("ode_sample", {"sde": NO_SDE, "z": DATA_OF_REALS, "eps": WITHIN_ONE, "solver": NO_SOLVER}),
    ("ode_encode", {"sde": NO_SDE, "x": DATA_OF_REALS, "eps": WITHIN_ONE, "solver": NO_SOLVER}),
    ("ode_draw", {"key": NO_KEY, "shape": SHAPE_OF_SEVERAL, "eps": WITHIN_ONE}),
    ("ddim_sample", {"sde": NO_SDE, "z": DATA_OF_REALS, "eps": WITHIN_ONE, "steps": COUNT}),
    ("dpm_solver_sample", {"sde": NO_SDE, "z": DATA_OF_REALS, "eps": WITHIN_ONE, "steps": COUNT}),
    ("euler_sample", {"sde": NO_SDE, "key": NO_KEY, "shape": SHAPE_OF_SEVERAL, "eps": WITHIN_ONE,
                      "steps": COUNT}),
    ("fit", {"steps": COUNT, "every": COUNT, "ema_rate": WITHIN_ONE, "seed": SEED}),
    ("pc_sample", {"sde": NO_SDE, "key": NO_KEY, "shape": SHAPE_OF_SEVERAL, "eps": WITHIN_ONE,
                   "method": (100, "pc", None)}),
    ("PredictorCorrector", {"steps": COUNT, "corrector_steps": COUNT, "snr": POSITIVE,
                            "predictor": ("euler_maruyama", 3), "corrector": ("langevin", X)}),
    ("inpaint", {"x": DATA_OF_REALS[:-1], "key": NO_KEY, "eps": WITHIN_ONE,
                 "known": (*NO_ARRAY, [0.5, 1.0])}),
    ("colourise", {"grey": DATA_OF_REALS, "key": NO_KEY, "eps": WITHIN_ONE}),
    ("guided", {"noise": NO_FUNCTION, "sde": NO_SDE, "log_prob": NO_FUNCTION}),
    ("Multistep", {"steps": COUNT, "calibration": POSITIVE, "typical": (*NUMBER, -1.0)}),
    ("Doubling", {"tolerance": POSITIVE, "fewest": COUNT, "most": (*COUNT, 8)}),
    ("PublishedRK45", {"rtol": POSITIVE, "atol": POSITIVE}),
    ("Hutchinson", {"probes": COUNT, "distribution": WORD}),
    ("Orthogonal", {"probes": COUNT}),
    ("Hierarchical", {"probes": COUNT}),
    ("Exact", {"block": COUNT}),
    ("FixedProbe", {"vectors": NO_ARRAY}),
    ("UniformTime", {"eps": WITHIN_ONE_OR_ZERO}),
    ("UniformTime(...)", {"key": NO_KEY, "n": NO_COUNT}),
    ("UniformLogSNR", {"sde": NO_SDE, "eps": WITHIN_ONE}),
    ("AlphaSquared", {"sde": NO_SDE, "eps": WITHIN_ONE}),
    ("BinnedLogSNR", {"sde": NO_SDE, "eps": WITHIN_ONE,
                      "shares": (*NO_ARRAY, 2 * SHARES, 1 - SHARES, "a")}),
    ("ByOde", {"samples": COUNT, "decoder": NO_PART}),
    ("ByElbo", {"draws": COUNT, "matching": WORD, "start": WITHIN_ONE[:1],
                "decoder": (*NO_PART, None), "control": NO_PART}),
    ("BySteps", {"draws": COUNT[:1], "variance": WORD,
                 "times": (*NO_ARRAY, 0.5, [0.5], [0.5, 0.4], [0.5, 0.5], [0.5, np.nan],
                           [0.5, 2.0])}),
    ("ByLabels", {"labels": COUNT}),
    ("TruncatedNormal", {"sde": NO_SDE, "start": WITHIN_ONE,
                         "pixels": (256, None, scoremle.Pixels)}),
    ("Uniform(...)", {"key": NO_KEY}),
    ("SDE", {"kernel": WORD, "prior_std": POSITIVE}),
    ("VP", {"beta_min": (*NUMBER, -1.0), "beta_max": POSITIVE}),
    ("SubVP", {"beta_min": (*NUMBER, -1.0), "beta_max": POSITIVE}),
    ("VE", {"sigma_min": POSITIVE, "sigma_max": POSITIVE}),
    ("LinearVE", {"sigma_max": POSITIVE}),
    ("Cosine", {"log_snr_min": (*NUMBER, 15.0), "log_snr_max": (*NUMBER, -15.0)}),
    ("LinearLogSNR", {"log_snr_min": (*NUMBER, 15.0), "log_snr_max": (*NUMBER, -15.0)}),
    ("LinearBeta", {"beta_min": (*NUMBER, -1.0), "beta_max": POSITIVE, "kernel": (*WORD, "ve")}),
    ("LinearSigma", {"sigma_max": POSITIVE}),
    ("GeometricSigma", {"sigma_min": POSITIVE, "sigma_max": POSITIVE}),
    ("KarrasSigma", {"sigma_min": POSITIVE, "sigma_max": POSITIVE, "rho": POSITIVE}),
    ("Discrete", {"log_snrs": (*NO_ARRAY, 3.0, [1.0], [1.0, 3.0], [np.inf, 1.0])}),
    ("betas", {"name": (*WORD, X), "start": POSITIVE[:1], "end": POSITIVE[2:]}),
    ("of_betas", {"betas": (*NO_ARRAY, 0.5, [0.0, 0.1], [np.nan, 0.1], [0.1, 1.5])}),
    ("prior_sample", {"key": NO_KEY, "shape": SHAPE_OF_SEVERAL}),
    ("Affine", {"shift": NO_NUMBER[:2], "scale": (*NO_NUMBER[:2], 0.0, np.nan, [1.0, 0.0])}),
    ("standardizing", {"x": DATA_OF_REALS}),
    ("Bounded", {"low": (*NO_NUMBER[:2], np.nan), "high": (*NO_NUMBER[:2], np.nan)}),
    ("Chain", {"maps": (scoremle.Affine(1, 2), None, "ab", [scoremle.Affine], (None,))}),
    ("kernel_distance", {"subset": (*COUNT, 1)}),
    ("precision_recall", {"neighbours": COUNT}),
    ("features", {"features": NO_FEATURES}),
    ("Samples", dict.fromkeys(("log_prob", "solver_error", "probe_stderr", "evaluations"),
                              (ONES[:3], X, X[:, :1]))),
    ("interpolate", {"z0": DATA_OF_REALS, "weights": (*NO_ARRAY, [0.0, np.nan])}),
]  # fmt: skip
CASES = [
    pytest.param(name, argument, bad, id=f"{name}-{argument}-{i}")
    for name, arguments in TABLE
    for argument, values in arguments.items()
    for i, bad in enumerate(values)
]


@pytest.fixture
def strict():
    """A warning of a deprecation is an error too."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(("name", "argument", "bad"), CASES)
def test_a_bad_argument_is_named_in_one_line(name, argument, bad, unchecked, strict):
    function, good = CALLS[name]
    with pytest.raises(scoremle.UserError, match=rf"\b{argument}\b") as error:
        function(**{**good, argument: bad})
    assert "\n" not in str(error.value)


def ddpmpp(**fields):
    ddpmpp_check(scoremle.DDPMpp(**fields))


def adm(**fields):
    adm_check(ADM(image_size=1, **fields))


def unet2d(depth=1, **fields):
    blocks = {f"{way}_block_types": (f"{way.title()}Block2D",) * depth for way in ("down", "up")}
    check_fields(UNet2D(**{"block_out_channels": (32,) * depth, **blocks, **fields}))


# What takes a number, from the least that it may be to the most; None: there is no such end.
LIMITS = {
    "levels": (lambda n: scoremle.Pixels(n), 2, 65_536),
    "seed": (lambda n: check_seed(n), 0, 2**32 - 1),
    "betas": (lambda n: betas("linear", steps=n), 1, 1_000_000),
    "probes": (lambda n: scoremle.Hutchinson(n), 1, None),
    "orthogonal probes": (lambda n: scoremle.Orthogonal(n), 1, None),
    "hierarchical probes": (lambda n: scoremle.Hierarchical(n), 1, None),
    "block": (lambda n: scoremle.Exact(n), 1, None),
    "nodes": (lambda n: scoremle.Multistep(n), 1, None),
    "fewest": (lambda n: scoremle.Doubling(fewest=n), 1, 1024),
    "most": (lambda n: scoremle.Doubling(most=n), 16, None),
    "samples": (lambda n: scoremle.ByOde(samples=n), 1, None),
    "draws": (lambda n: scoremle.ByElbo(draws=n), 1, None),
    "labels": (lambda n: ByLabels(scoremle.ByOde(), n), 1, None),
    "steps": (lambda n: scoremle.PredictorCorrector(steps=n), 1, None),
    "corrector steps": (lambda n: scoremle.PredictorCorrector(corrector_steps=n), 1, None),
    "passes": (lambda n: scoremle.Scorer(lambda: PIXELS, passes=n), 1, None),
    "images at once": (lambda n: scoremle.Scorer(lambda: PIXELS, batch_size=n), 1, None),
    "dims": (lambda n: scoremle.bits_per_dim(np.ones(2), PIXELS.pixels, n), 1, None),
    "size of pictures": (lambda n: Options(size=n), 0, None),
    "blocks of ddpmpp": (lambda n: ddpmpp(num_res_blocks=n), 1, 100),
    "levels of ddpmpp": (lambda n: ddpmpp(ch_mult=(1,) * n), 1, 16),
    "channels of ddpmpp": (lambda n: ddpmpp(nf=n), 4, 65_536),
    "blocks of vdm": (lambda n: VDMNet(num_res_blocks=n)._check(), 1, 100),
    "blocks of flowpp": (lambda n: flowpp_check(FlowPP(blocks=n), (1, 2, 2, 1)), 1, 100),
    "couplings": (lambda n: flowpp_check(FlowPP(couplings=n), (1, 2, 2, 1)), 1, 100),
    "blocks of adm": (lambda n: adm(num_res_blocks=n, channel_mult=(1,)), 1, 100),
    "levels of adm": (lambda n: adm(channel_mult=(1,) * n), None, 16),
    "channels of adm": (lambda n: adm(num_channels=n, channel_mult=(1,)), 1, 65_536),
    "attention of adm": (
        lambda n: adm(attention_resolutions=(n,), channel_mult=(1,)), 1, 65_536,
    ),
    "blocks of diffusers": (lambda n: unet2d(layers_per_block=n), 1, 100),
    "levels of diffusers": (lambda n: unet2d(depth=n), 1, 16),
    "channels of diffusers": (lambda n: unet2d(block_out_channels=(n,)), 1, 65_536),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_a_number_may_be_its_limits_and_nothing_beyond(name):
    of, least, most = LIMITS[name]
    for fine in (least, most):
        if fine is not None:
            of(fine)
    for bad in (*([] if least is None else [least - 1]), *([] if most is None else [most + 1])):
        with pytest.raises(scoremle.UserError, match="must"):
            of(bad)


@pytest.mark.parametrize("kernel", [(), (1, -1), (1, np.nan), ("1", "3")])
def test_a_filter_without_a_sum_is_refused(kernel):
    ddpmpp(fir=True, fir_kernel=(1, -0.5))
    with pytest.raises(scoremle.UserError, match="fir_kernel"):
        ddpmpp(fir=True, fir_kernel=kernel)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (5.0, -13.3), (0.0, np.inf)])
def test_ends_of_the_log_snr_that_are_none_are_refused(low, high):
    with pytest.raises(scoremle.UserError, match="gamma_max"):
        VDMNet(gamma_min=low, gamma_max=high)._check()


@pytest.mark.parametrize("name", [name for name, (_, good) in CALLS.items() if "eps" in good])
def test_an_eps_outside_its_range_is_refused_by_the_default_solver_too(name, unchecked):
    function, good = CALLS[name]
    default = {argument: value for argument, value in good.items() if argument != "solver"}
    for eps in (-0.1, 1.0, 1.5, np.nan, np.inf, np.float32(1.5), jnp.asarray(1.5)):
        with pytest.raises(scoremle.UserError, match="eps must"):
            function(**{**default, "eps": eps})


def test_each_public_name_with_numbers_has_a_row():
    """But for protocols, and what takes models and records alone."""
    others = {
        "__version__", "DDPMpp", "PerDimension", "Samples", "Schedule", "Scores",
        "Uniform", "UserError",
    }  # fmt: skip
    missing = {*scoremle.__all__} - {name for name, _ in TABLE} - others
    assert missing == set()


ARRAYS = {
    "list": lambda x: x.tolist(),
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "float64": lambda x: x.astype(np.float64),
    "longdouble": lambda x: x.astype(np.longdouble),
    "jax": jnp.asarray,
}


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("name", ["log_prob", "encode", "elbo", "ddim_sample"])
def test_arrays_of_all_kinds_are_the_same_data(name, kind, unchecked, strict):
    function, good = CALLS[name]
    argument = "z" if "z" in good else "x"
    found, expected = (
        getattr(value, "log_prob", value)
        for value in (function(**{**good, argument: ARRAYS[kind](X)}), function(**good))
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["log_prob", "sample", "denoising_loss", "euler_sample"])
def test_a_key_without_a_type_is_the_same_key(name, unchecked):
    function, good = CALLS[name]
    old = jax.random.PRNGKey(0), np.asarray(jax.random.PRNGKey(0))
    for key in old:
        found, expected = (
            getattr(value, "log_prob", value)
            for value in (function(**{**good, "key": key}), function(**good))
        )
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("index", [[2**64 - 1, 0], np.asarray([3, 4], ">i8"), jnp.arange(2), []])
def test_an_index_of_whole_numbers_is_kept(index):
    np.testing.assert_array_equal(as_index(index), np.asarray([*map(int, index)], np.uint64))


BATCHED = {name: "images" for name in ("score", "calibrated", "fit_decoder")}
BATCHED |= {"sample": "key", "profile": "data", "check": "data"}


@pytest.mark.parametrize("name", BATCHED)
def test_what_works_in_batches_is_refused_within_a_program(name):
    (function, good), argument = CALLS[name], BATCHED[name]
    with pytest.raises(UserError, match=f"{name} .* outside"):
        jax.eval_shape(lambda value: function(**{**good, argument: value}), good[argument])


def test_numbers_that_are_traced_are_not_looked_at():
    """They are not known before the program runs."""

    def value(x, scale):
        sde = scoremle.VP(0.1 * scale, 20.0 * scale)
        times = scoremle.UniformTime(EPS * scale)
        loss = scoremle.denoising_loss(NOISE, sde, x, KEY, times=times, weighting="plain")
        found = scoremle.ode_log_likelihood(NOISE, sde, x, KEY, eps=EPS * scale, solver=FEW)
        return loss.sum() + found.log_prob.sum()

    slopes = jax.jit(jax.grad(value, (0, 1)))(jnp.asarray(X), 1.0)
    assert all(jnp.isfinite(slope).all() for slope in slopes)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("fit is 'crop', but a fit image is needed", "--fit is 'crop', but a fit image is needed"),
        ("no place; it needs path=PLACE: a path", "no place; it needs --path=PLACE: a path"),
        ("leave them out by skip_bad=True", "leave them out by --skip-bad"),
        ("the length of fit must be 1", "the length of --fit must be 1"),
        ("my.fit=3 and a-path=2 and paths", "my.fit=3 and a-path=2 and paths"),
    ],
)
def test_a_mistake_names_flags_to_those_who_type_them(text, told):
    with pytest.raises(UserError) as error, named_as(as_flag, ("fit", "path", "skip_bad")):
        raise UserError(text)
    assert str(error.value) == told


OF_SDES = [name for name, (_, good) in CALLS.items() if {"noise", "sde"} <= set(good)]


@pytest.mark.parametrize("name", OF_SDES)
def test_a_network_for_another_sde_is_refused(name, unchecked):
    """Values of such a pair would look right: their solver states little error."""
    function, good = CALLS[name]
    noise = scoremle.noise_fn(lambda x, label: 0 * x, scoremle.SubVP())
    with pytest.raises(scoremle.UserError, match="is made for"):
        function(**{**good, "noise": noise})


OF_ROWS = scoremle.SDE("vp", Curved(8.0, jnp.full(3, 16.0), jnp.asarray(0.1)), 1.0)


@pytest.mark.parametrize("name", OF_SDES)
def test_a_schedule_of_other_dimensions_is_refused(name, unchecked):
    """In images it would be taken by rows where their number fits."""
    function, good = CALLS[name]
    with pytest.raises(scoremle.UserError, match="log-SNRs of shape"):
        found = function(**{**good, "noise": of_pixels, "sde": OF_ROWS})
        found(X, jnp.full(len(X), 0.5))  # of what is a function itself


def test_a_map_by_a_schedule_of_other_dimensions_is_refused(unchecked):
    images = np.ones((2, 3, 3, 1), np.float32)
    for way in (AtTime(OF_ROWS, 0.5).forward, AtTime(OF_ROWS, 0.5).inverse):
        with pytest.raises(scoremle.UserError, match="log-SNRs of shape"):
            way(images)


def test_the_published_solver_refuses_a_network_for_another_sde(unchecked):
    function, good = CALLS["ode_log_likelihood"]
    noise = scoremle.noise_fn(lambda x, label: 0 * x, scoremle.SubVP())
    chosen = {"solver": PublishedRK45(), "divergence": scoremle.Hutchinson()}
    with pytest.raises(scoremle.UserError, match="is made for"):
        function(**{**good, **chosen, "noise": noise})


@pytest.mark.parametrize("name", OF_SDES)
@pytest.mark.parametrize("bad", NO_FUNCTION)
def test_what_is_no_function_is_refused(name, bad, unchecked, strict):
    function, good = CALLS[name]
    with pytest.raises(scoremle.UserError, match="noise must"):
        function(**{**good, "noise": bad})
