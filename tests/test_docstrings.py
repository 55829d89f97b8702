"""Each public name has an example that runs, and says what each of its arguments is.

Examples may use ``scoremle``, ``jax``, ``jnp``, ``np`` and ``dataclasses`` without importing them.
"""

import dataclasses
import doctest
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scoremle
from scoremle import anomaly, weights
from scoremle.core.prediction import NetworkNoise
from scoremle.likelihood.control_variate import Control, FittedGaussian
from scoremle.likelihood.elbo import ELBO
from scoremle.likelihood.importance import ImportanceBound
from scoremle.likelihood.pilot import Pilot, choose_within
from scoremle.likelihood.profile import Profile
from scoremle.likelihood.published_rk45 import PublishedRK45
from scoremle.likelihood.record import Likelihood
from scoremle.likelihood.score_images import Scored, choose_for_images, score_images
from scoremle.likelihood.steps import BySteps, step_bound
from scoremle.model import Origin
from scoremle.nn.flowpp import FlowPP
from scoremle.nn.vdm import MuLANEncoder, VDMNet
from scoremle.quality import metrics
from scoremle.quality.features import Reference
from scoremle.training.step import make_optimizer
from scoremle.weights.flows import FlowModel
from scoremle.zoo.adm import ADM
from scoremle.zoo.diffusers import Scheduler, SigmaScheduler
from scoremle.zoo.unet2d import UNet2D

IMPORTED = {"scoremle": scoremle, "jax": jax, "jnp": jnp, "np": np, "dataclasses": dataclasses}
# Those whose methods users call on what they hold.
RECORDS = (scoremle.ScoreModel, scoremle.Scores, Profile)


def methods(record: type) -> dict[str, object]:
    """The public methods and properties of a class."""
    found = {}
    for name, value in vars(record).items():
        if isinstance(value, property | classmethod) or inspect.isfunction(value):
            found[f"{record.__name__}.{name}"] = getattr(value, "fget", getattr(record, name))
    return {name: value for name, value in found.items() if "._" not in name}


NAMES = {name: getattr(scoremle, name) for name in scoremle.__all__ if name != "__version__"}
NAMES |= {f"weights.{name}": getattr(weights, name) for name in weights.__all__}
NAMES |= {f"anomaly.{name}": getattr(anomaly, name) for name in anomaly.__all__}
PUBLIC = NAMES | {name: value for record in RECORDS for name, value in methods(record).items()}
NETWORKS = {network.__name__: network for network in (ADM, FlowPP, UNet2D)}
every_name = pytest.mark.parametrize("name", PUBLIC)


@every_name
def test_an_example_runs(name):
    text = inspect.getdoc(PUBLIC[name])
    example = doctest.DocTestParser().get_doctest(text, dict(IMPORTED), name, None, 0)
    assert example.examples, f"{name} has no example"
    told = []
    doctest.DocTestRunner().run(example, out=told.append)
    assert not told, "".join(told)


@pytest.mark.parametrize("name", sorted(set(PUBLIC | NETWORKS) - {"UserError"}))
def test_each_argument_has_its_line(name):
    public = (PUBLIC | NETWORKS)[name]
    lacking = [
        parameter
        for parameter in inspect.signature(public).parameters
        if parameter not in ("self", "parent", "name", "args", "kwargs")
        and not re.search(rf"\b{parameter}\b", inspect.getdoc(public))
    ]
    assert not lacking, f"{name} does not say what {', '.join(lacking)} are"


# What an argument is that nobody names; a change of one changes everybody's numbers.
MULTISTEP = "Multistep(steps=40)"
HUTCHINSON = "Hutchinson(probes=1, distribution='rademacher')"
GAUSSIAN = "GaussianDecoder()"
DEFAULTS = {
    scoremle.Hutchinson: {"probes": 1, "distribution": "rademacher"},
    scoremle.Orthogonal: {"probes": 2},
    scoremle.Hierarchical: {"probes": 1},
    scoremle.Exact: {"block": 64},
    scoremle.Multistep: {"steps": 40, "calibration": 1.0, "typical": 0.0},
    scoremle.Doubling: {"tolerance": 1e-3, "fewest": 16, "most": 1024},
    PublishedRK45: {"rtol": 1e-5, "atol": 1e-5},
    scoremle.Pixels: {"levels": 256, "low": -1.0, "high": 1.0},
    scoremle.Bounded: {"low": -np.inf, "high": np.inf},
    scoremle.noise_fn: {"prediction": "eps", "time_input": "log_snr", "sigma_data": 0.5},
    scoremle.Cosine: {"log_snr_min": -15.0, "log_snr_max": 15.0},
    scoremle.LinearLogSNR: {"log_snr_min": -5.0, "log_snr_max": 13.3},
    scoremle.GeometricSigma: {"sigma_min": 0.01, "sigma_max": 50.0},
    scoremle.KarrasSigma: {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0},
    scoremle.LinearSigma: {"sigma_max": 50.0},
    scoremle.LinearBeta: {"beta_min": 0.1, "beta_max": 20.0, "kernel": "vp"},
    scoremle.VP: {"beta_min": 0.1, "beta_max": 20.0},
    scoremle.SubVP: {"beta_min": 0.1, "beta_max": 20.0},
    scoremle.VE: {"sigma_min": 0.01, "sigma_max": 50.0},
    scoremle.LinearVE: {"sigma_max": 50.0},
    scoremle.UniformTime: {"stratified": False},
    scoremle.UniformLogSNR: {"stratified": False},
    scoremle.AlphaSquared: {"stratified": False},
    scoremle.BinnedLogSNR: {"stratified": False},
    scoremle.elbo: {"matching": "denoising", "decoder": GAUSSIAN},
    scoremle.ByElbo: {"draws": 1000, "matching": "denoising", "decoder": GAUSSIAN},
    scoremle.ByOde: {"divergence": HUTCHINSON, "solver": MULTISTEP, "samples": 1},
    BySteps: {"variance": "small", "clip": True},
    step_bound: {"variance": "small", "clip": True},
    Pilot: {"finest": 256},
    choose_within: {"seed": 0},
    score_images: {"passes": 1, "seed": 0, "share": "slice(None, None, None)", "label": ""},
    choose_for_images: {"divergence": HUTCHINSON, "mean_over": 1, "passes": 1, "tolerance": 0.0,
                        "seed": 0},
    scoremle.ScoreModel.within: {"seed": 0},
    scoremle.ScoreModel.elbo: {"draws": 1000},
    scoremle.ScoreModel.profile: {"bins": 10, "draws": 4, "batch_size": 256, "seed": 0,
                                  "label": ""},
    scoremle.ScoreModel.score: {"passes": 1, "seed": 0, "label": ""},
    scoremle.ScoreModel.calibrated: {"divergence": HUTCHINSON, "seed": 0},
    scoremle.ScoreModel.fit_decoder: {"seed": 0},
    scoremle.ScoreModel.sample: {"batch_size": 256, "label": "", "log_prob": False},
    Profile.plot: {"example": 0},
    scoremle.Scorer: {"passes": 1, "seed": 0, "batch_size": 256},
    scoremle.data.load: {"path": "", "image_size": 0, "num_channels": 0, "fit": "", "levels": 0,
                         "batch_size": 128, "seed": 0, "random_flip": False},
    FlowModel.score: {"draws": 1, "passes": 1, "seed": 0, "label": ""},
    anomaly.Detector.fit: {"statistic": "", "seed": 0, "label": ""},
    anomaly.Detector.score: {"label": ""},
    scoremle.ode_sample: {"solver": MULTISTEP},
    scoremle.ode_encode: {"solver": MULTISTEP},
    scoremle.euler_sample: {"denoise": True},
    scoremle.fit: {"ema_rate": 0.999, "seed": 0, "every": 1000},
    make_optimizer: {"weight_decay": 0.0, "beta2": 0.999, "decay_biases": True},
    metrics.kernel_distance: {"subset": 1000},
    metrics.class_score: {"splits": 10},
    metrics.precision_recall: {"neighbours": 3},
    scoremle.DDPMpp: {
        "nf": 128, "ch_mult": (1, 2, 2, 2), "num_res_blocks": 4, "attn_resolutions": (16,),
        "resblock_type": "biggan", "dropout": 0.0, "fir": False, "fir_kernel": (1, 3, 3, 1),
        "resamp_with_conv": True, "conditional": True, "skip_rescale": True,
        "scale_by_sigma": False, "progressive": "none", "progressive_input": "none",
        "progressive_combine": "sum", "embedding_type": "positional", "fourier_scale": 16.0,
        "trainable_embedding": False, "init_scale": 0.0, "nonlinearity": "swish",
        "fourier_features": False, "centered": True, "log_labels": False, "dtype": jnp.float32,
        "remat": False,
    },
    FlowPP: {"variant": "cifar10", "filters": 96, "components": 32, "blocks": 2, "couplings": 4,
             "heads": 4},
    VDMNet: {"nf": 128, "num_res_blocks": 32, "attn_resolutions": (), "dropout": 0.0,
             "fourier_features": True, "gamma_min": -13.3, "gamma_max": 5.0,
             "dtype": jnp.float32, "remat": False},
    MuLANEncoder: {"nf": 128, "num_res_blocks": 32, "attn_resolutions": (), "dropout": 0.0,
                   "fourier_features": True, "gamma_min": -13.3, "gamma_max": 5.0,
                   "dtype": jnp.float32, "remat": False, "logits": 50},
    ADM: {
        "image_size": 64, "num_channels": 128, "num_res_blocks": 2, "num_heads": 4,
        "num_heads_upsample": -1, "num_head_channels": -1, "attention_resolutions": (16, 8),
        "channel_mult": (), "conv_resample": True, "use_scale_shift_norm": True,
        "resblock_updown": False, "use_new_attention_order": False, "learn_sigma": False,
        "class_cond": False, "num_classes": 1000, "dtype": jnp.float32,
    },
    UNet2D: {  # those of diffusers
        "in_channels": 3, "out_channels": 3, "center_input_sample": False,
        "time_embedding_type": "positional", "freq_shift": 0, "flip_sin_to_cos": True,
        "down_block_types": ("DownBlock2D", *3 * ["AttnDownBlock2D"]),
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": (*3 * ["AttnUpBlock2D"], "UpBlock2D"),
        "block_out_channels": (224, 448, 672, 896), "layers_per_block": 2,
        "mid_block_scale_factor": 1, "downsample_padding": 1, "downsample_type": "conv",
        "upsample_type": "conv", "act_fn": "silu", "attention_head_dim": 8,
        "norm_num_groups": 32, "norm_eps": 1e-5, "resnet_time_scale_shift": "default",
        "add_attention": True, "dtype": jnp.float32,
    },
    Scheduler: {  # those of diffusers
        "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02,
        "beta_schedule": "linear", "prediction_type": "epsilon", "predict_epsilon": True,
        "rescale_betas_zero_snr": False, "clip_sample": True, "clip_sample_range": 1.0,
        "thresholding": False,
    },
    SigmaScheduler: {"sigma_min": 0.01, "sigma_max": 1348.0, "sampling_eps": 1e-5},
}  # fmt: skip


@pytest.mark.parametrize("public", DEFAULTS, ids=lambda public: public.__qualname__)
def test_what_nobody_names_is_as_documented(public):
    unset = (None, inspect.Parameter.empty)
    found = {
        parameter.name: parameter.default
        for parameter in inspect.signature(public).parameters.values()
        if parameter.default not in unset and parameter.name not in ("parent", "name")
    }
    of_records = {n: repr(v) for n, v in found.items() if repr(v) in DEFAULTS[public].values()}
    assert {**found, **of_records} == DEFAULTS[public]


# Fields that belong to the structure of a program, and are not differentiated; all other fields of
# these records are numbers or records.
STRUCTURE = {
    scoremle.TruncatedNormal: {"pixels"}, scoremle.LinearBeta: {"kernel"},
    scoremle.SDE: {"kernel"}, scoremle.VE: {"kernel"}, scoremle.VP: {"kernel"},
    scoremle.LinearVE: {"kernel"}, scoremle.SubVP: {"kernel"},
    scoremle.AlphaSquared: {"stratified"},
    scoremle.BinnedLogSNR: {"stratified"}, scoremle.UniformLogSNR: {"stratified"},
    scoremle.UniformTime: {"stratified"}, scoremle.ByElbo: {"matching", "draws"},
    scoremle.ByOde: {"samples"}, scoremle.ScoreModel: {"eps", "shape", "pixels"},
    scoremle.Multistep: {"steps"}, BySteps: {"variance", "clip", "draws"},
    FlowModel: {"function", "shape", "pixels", "inverse", "forward"},
    Origin: {"dataset", "step", "checkpoint", "pilot", "published", "classes", "middles", "grid"},
    NetworkNoise: {"prediction", "time_input", "sigma_data"}, ELBO: {"bounds"},
    Likelihood: {"trace", "refined"},
}  # fmt: skip
# Fields that a record's line is without.
UNSAID = {
    scoremle.Multistep: {"calibration", "typical"}, ELBO: {"profile"}, NetworkNoise: {"network"},
    Scored: {"differences", "order"},
}  # fmt: skip


@pytest.mark.parametrize("record", STRUCTURE | UNSAID, ids=lambda record: record.__name__)
def test_a_record_has_its_structure_and_says_what_is_short(record):
    fields = dataclasses.fields(record)
    assert {f.name for f in fields if f.metadata.get("static")} == STRUCTURE.get(record, set())
    assert {f.name for f in fields if not f.repr} == UNSAID.get(record, set())


@pytest.mark.parametrize(
    "record",
    [
        scoremle.Scores, scoremle.Samples, ELBO, Scored, Likelihood, ImportanceBound, Profile,
        weights.reweighting.Reweighted, anomaly.Anomalies, FittedGaussian, Control, Reference,
        scoremle.Affine, scoremle.Bounded, scoremle.Discrete, scoremle.BinnedLogSNR,
    ],
)  # fmt: skip
def test_a_record_of_arrays_equals_itself_alone(record):
    """Records of arrays have no single truth value, so each is equal to itself alone."""
    names = [f.name for f in dataclasses.fields(record)]
    one, other = (object.__new__(record) for _ in range(2))
    for each in (one, other):
        vars(each).update({name: np.ones(3) for name in names})
    assert one == one and one != other and len({one, other}) == 2
