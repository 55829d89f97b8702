"""Every field that can be set, with the published values for CIFAR-10 and the VP SDE.

A comment that ends a field's line is its meaning in ``--help``. A config file copies these fields
and changes what differs. Values are tuples, never lists: lists cannot be set on a command line.

A default that depends on other fields is a placeholder ("from ..." in its comment). ``resolve``
fills it after the command line was read, so that it follows what was typed there and not what the
file said before. A config file with a rule of its own defines its own ``resolve``, which ends by
calling this one.
"""

import logging

import ml_collections
from ml_collections.config_dict import placeholder

logger = logging.getLogger(__name__)

# Sub-VP is published with a later start: its noise at t is of order t, not of order sqrt(t).
# The last three have a finite log-SNR at 0.
FROM_ZERO = {"vdm": 0.0, "idode": 0.0, "idode_straight": 0.0}
SMALLEST_TIME = {"subvpsde": 1e-2, **FROM_ZERO}
SAMPLING_STEPS = {"ddim": 100, "dpm_solver": 20}

SECTIONS = ("training", "devices", "deq", "sampling", "eval", "data", "model", "optim")
# Names that are compared as they are, wherever they were typed in upper case.
LOWERED = (
    ("eval", "dequantization"), ("eval", "bound_times"), ("eval", "label"), ("eval", "solver"),
    ("data", "fit"), ("data", "on_device"), ("model", "embedding"), ("model", "schedule"),
    ("training", "on_nan"), ("training", "time_density"),
)  # fmt: skip


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict({section: {} for section in SECTIONS})
    config.seed = 42  # seed of all randomness
    config.logging = ""  # also send numbers to: tensorboard, wandb, trackio, mlflow; by commas

    config.training.sde = "vpsde"  # or subvpsde, vesde, linearvesde, vdm, idode, idode_straight
    config.training.continuous = True  # continuous time; False is refused
    config.training.batch_size = 128  # images per optimisation step
    config.training.accumulate = 1  # parts of a batch, one after the other: less memory
    config.training.n_iters = 1_300_001  # optimisation steps
    config.training.snapshot_freq = 50_000  # steps between snapshots; numbered by step / this
    config.training.log_freq = 100  # steps between lines of the log
    config.training.eval_freq = 100  # steps between evaluations of the loss on test images
    config.training.snapshot_freq_for_preemption = 10_000  # steps between resume checkpoints
    config.training.on_nan = "stop"  # stop, or rollback to the last checkpoint, images reordered
    config.training.rollbacks = 3  # most times that training.on_nan=rollback goes back
    config.training.snapshot_sampling = True  # draw a grid of samples at each snapshot
    config.training.likelihood_weighting = False  # weight g(t)^2: maximum likelihood
    config.training.importance_weighting = False  # draw t by importance (uniform in log-SNR)
    config.training.time_density = "published"  # density of t: published, alpha_squared or learned
    config.training.stratified = False  # draw t stratified in the batch, one random offset
    config.training.second_order = False  # add i-DODE's second-order loss: to fine-tune
    config.training.n_jitted_steps = 5  # optimisation steps between two tests for nan
    config.training.reduce_mean = True  # loss: mean over dimensions; False: half their sum
    config.training.smallest_time = placeholder(float)  # smallest time; unset: by the SDE

    config.devices.fsdp = False  # training: parameters, EMA and optimizer split over the devices

    config.deq.n_iters = 300_001  # optimisation steps of the flow dequantizer
    config.deq.ema_rate = 0.99  # EMA decay of the flow dequantizer
    config.deq.dropout = 0.0  # unused: only this value
    config.deq.offset = True  # its loss counts the step from smallest_time to the data
    config.deq.variant = "cifar10"  # published flow: cifar10 (shallow) or imagenet32 (deep)
    config.deq.filters = 96  # channels of the couplings' networks
    config.deq.components = 32  # logistics in each mixture
    config.deq.blocks = 2  # blocks of a gated convolution and attention in each coupling
    config.deq.couplings = 4  # couplings, which change the even and the odd columns in turn
    config.deq.heads = 4  # attention heads of the couplings

    config.sampling.method = "ode"  # ode, ddim or dpm_solver (flow); pc or euler (reverse SDE)
    config.sampling.steps = placeholder(int)  # sampler steps; unset: set by the method
    config.sampling.predictor = "euler_maruyama"  # or reverse_diffusion, ancestral_sampling, none
    config.sampling.corrector = "none"  # langevin, ald or none
    config.sampling.n_steps_each = 1  # corrector steps before each predictor step
    config.sampling.snr = 0.16  # size of corrector steps: signal-to-noise ratio
    config.sampling.probability_flow = False  # the predictor solves the ODE; False: the SDE
    config.sampling.noise_removal = True  # end without the noise of smallest_time
    config.sampling.smallest_time = placeholder(float)  # where sampling ends; unset: by the SDE

    config.eval.begin_ckpt = placeholder(int)  # first checkpoint; unset: end_ckpt alone
    config.eval.end_ckpt = placeholder(int)  # last checkpoint; unset: the newest in the workdir
    config.eval.wait = False  # wait for checkpoints up to end_ckpt that are not there yet
    config.eval.ckpt_id = placeholder(int)  # checkpoint of mode train_deq; unset: the newest
    config.eval.batch_size = 1024  # images per evaluation batch; fewer where memory is short
    config.eval.enable_sampling = False  # draw samples
    config.eval.num_samples = 50_000  # how many samples
    config.eval.inception = ""  # weights (convert-inception) to judge samples by; '': don't
    config.eval.stats = ""  # features of the data set (scoremle stats) to compare samples with
    config.eval.enable_loss = False  # evaluate the training loss
    config.eval.enable_bpd = True  # evaluate bits/dim
    config.eval.bpd_dataset = "test"  # split: train or test
    config.eval.dataset = ""  # the same under another name; '' takes bpd_dataset
    config.eval.dtype = "float32"  # precision in evaluations: float32 or bfloat16
    config.eval.num_images = 0  # number of images, from the first; 0: the whole split
    config.eval.num_repeats = 5  # passes over the split, each with fresh noise
    config.eval.bound = False  # the variational bound instead of the exact likelihood
    config.eval.dsm = True  # bound by denoising score matching; False: sliced
    config.eval.bound_draws = 1000  # random times per image in the bound
    # Learned times come with a control variate: published is log_snr, without strata.
    config.eval.bound_times = "learned"  # density of these times: learned, log_snr or time
    config.eval.bound_stratified = True  # spread these times evenly within an image
    config.eval.bound_steps = 0  # steps of the chain of the bound; 0: continuous time
    # The name "none" is for the bound alone: it then is one on integers, by a discrete decoder. By
    # "informed" the network decodes integers, where its least noise is wider than half a level.
    config.eval.dequantization = "uniform"  # or truncated_normal, variational, informed, none
    config.eval.dequantizer = False  # True: the same as eval.dequantization=variational
    config.eval.deq_ckpt = placeholder(int)  # checkpoint of the flow; unset: the newest
    config.eval.importance_samples = 1  # draws of dequantization noise in one bound per image
    config.eval.label = ""  # a class of an imported model, or all for the mean of classes
    config.eval.suite = False  # every estimator on one checkpoint, in one table, and checks
    config.eval.offset = True  # count the step from smallest_time to the data in the bound
    config.eval.divergence = "rademacher"  # hierarchical, gaussian, orthogonal probes; exact
    config.eval.probes = 1  # probes per image; multistep draws new ones at each step
    config.eval.solver = "auto"  # auto (steps by a pilot), multistep, doubling or rk45_reference
    config.eval.nodes = 32  # steps of solver=multistep
    # Of auto, what the solver adds to the mean's standard error; of doubling, an image's error.
    config.eval.tolerance = placeholder(float)  # allowed error, bits/dim; unset: by eval.solver

    config.data.dataset = "CIFAR10"  # name of the data set
    config.data.path = ""  # its files, or a prepared folder; '': in the cache or installed
    config.data.image_size = 32  # height and width; beyond the images' own: padded with zeros
    config.data.num_channels = 3  # 1 or 3
    config.data.fit = ""  # images of other sizes: crop, resize (square) or pad; '': refused
    config.data.levels = 0  # fewer grey levels, from 2 on; 0: those of the images
    config.data.on_device = "auto"  # keep training images there: true, false, auto (if they fit)
    config.data.random_flip = True  # mirror training images at random
    config.data.augment = False  # mirror or turn training images at random; an input of vdm
    config.data.centered = True  # scale to [-1, 1]; False: [0, 1]
    # Off as published: training sees the grid k/255, while likelihoods are of (k + u)/256.
    config.data.uniform_dequantization = False  # train on (k + u)/256; False: on k/255
    config.data.bin_middles = False  # train on (k + 1/2)/256, by the bound on k in bits/dim

    config.model.name = "ncsnpp"  # network: ncsnpp (DDPM++, NCSN++), vdm, or published
    config.model.nf = 128  # channels of the first level
    config.model.ch_mult = (1, 2, 2, 2)  # channels of each level, in units of nf
    config.model.num_res_blocks = 4  # residual blocks per level
    config.model.attn_resolutions = (16,)  # image sizes that have attention
    config.model.dropout = 0.1  # dropout in residual blocks
    config.model.resblock_type = "biggan"  # biggan (resamples inside) or ddpm
    config.model.resamp_with_conv = True  # resample with a convolution (ddpm blocks)
    config.model.conditional = True  # t is an input of the network
    config.model.fir = False  # resample with an FIR filter; False: nearest and mean
    config.model.fir_kernel = (1, 3, 3, 1)  # taps of the FIR filter
    config.model.skip_rescale = True  # divide residual sums by sqrt(2)
    config.model.progressive = "none"  # output pyramid: none, output_skip or residual
    config.model.progressive_input = "none"  # input pyramid: none, input_skip or residual
    config.model.progressive_combine = "sum"  # how pyramids join: sum or cat
    config.model.parameterization = "published"  # or eps, score, x_0, v, u, unit_u, -u, edm
    config.model.embedding = "time"  # what is embedded: time (999 t; sigma for vesde) or log_snr
    config.model.embedding_type = "positional"  # embedding of t: positional or fourier
    config.model.fourier_features = False  # Fourier features of the image as a further input
    config.model.fourier_scale = 16.0  # scale of the Fourier features
    config.model.trainable_embedding = False  # train the Fourier features' frequencies
    config.model.nonlinearity = "swish"  # elu, relu, lrelu or swish
    config.model.init_scale = 0.0  # scale of each residual block's last initial weights
    config.model.scale_by_sigma = False  # divide the output by sigma
    config.model.ema_rate = 0.9999  # EMA decay of the parameters
    config.model.dtype = "float32"  # of the computation in training: float32 or bfloat16
    config.model.remat = False  # compute residual blocks twice in training, to save memory
    config.model.sigma_min = 0.01  # least noise of vesde
    config.model.sigma_max = 50.0  # greatest noise of vesde and linearvesde
    config.model.beta_min = 0.1  # beta(0) of vpsde and subvpsde
    config.model.beta_max = 20.0  # beta(1) of vpsde and subvpsde
    # By least_variance the course of a network between ends that are learned by the bound. A
    # polynomial has a course for each number of an image, by a code that an encoder makes of it.
    config.model.schedule = "fixed"  # learned: scalar, network, least_variance, polynomial
    config.model.latent_size = 50  # bits of the polynomial schedule's code
    config.model.latent_k = 15  # bits of the code that are 1
    config.model.encoder_blocks = 4  # blocks of the code's encoder
    config.model.log_snr_min = -5.0  # log-SNR at t = 1 of vdm, idode and idode_straight
    config.model.log_snr_max = 13.3  # log-SNR at t = 0 of vdm, idode and idode_straight
    config.model.num_scales = 1000  # steps of the pc and euler samplers
    # The last four are read by nothing. They are kept so that published command lines work, and
    # any value but the published one is refused.
    config.model.normalization = "GroupNorm"  # unused: only this value
    config.model.attention_type = "ddpm"  # unused: only this value
    config.model.conv_size = 3  # unused: only this value
    config.model.data_init = False  # unused: only this value

    config.optim.optimizer = "Adam"  # Adam, or AdamW: biases do not decay
    config.optim.lr = 2e-4  # learning rate after warm-up
    config.optim.beta1 = 0.9  # Adam's decay of the first moment
    config.optim.beta2 = 0.999  # Adam's decay of the second moment
    config.optim.eps = 1e-8  # Adam's epsilon
    config.optim.weight_decay = 0.0  # weight decay
    config.optim.warmup = 5000  # steps of linear warm-up
    config.optim.grad_clip = 1.0  # greatest global norm of the gradient; negative: none
    return config


def resolve(config: ml_collections.ConfigDict) -> None:
    """Fills, in place, the fields that are still unset from those they depend on."""
    for (section, field), value in _derived(config).items():
        if config[section][field] is None:
            config[section][field] = value
    config.eval.dataset = (config.eval.dataset or config.eval.bpd_dataset).lower()
    config.eval.bpd_dataset = config.eval.dataset
    for section, field in LOWERED:
        config[section][field] = config[section][field].lower()
    if config.eval.solver == "adaptive":
        logger.warning("eval.solver=adaptive is called doubling now")
        config.eval.solver = "doubling"
    if config.eval.dequantizer and config.eval.dequantization == "uniform":
        config.eval.dequantization = "variational"


def unresolve(config: ml_collections.ConfigDict) -> None:
    """Empties, in place, the fields that hold what ``resolve`` would put there.

    So they follow the others again, when these are changed.
    """
    for (section, field), value in _derived(config).items():
        if config[section][field] == value:
            config[section][field] = None
    if config.eval.dataset == config.eval.bpd_dataset:
        config.eval.dataset = ""
    if config.eval.dequantizer and config.eval.dequantization == "variational":
        config.eval.dequantization = "uniform"


def _derived(config: ml_collections.ConfigDict) -> dict[tuple[str, str], float | int]:
    """Values of the placeholders, by section and field."""
    sde, method = config.training.sde.lower(), config.sampling.method.lower()
    other = config.eval.nodes if method == "ode" else config.model.num_scales
    doubling = config.eval.solver.lower() in ("doubling", "adaptive")
    return {
        ("training", "smallest_time"): SMALLEST_TIME.get(sde, 1e-5),
        ("sampling", "smallest_time"): SMALLEST_TIME.get(sde, 1e-3),
        ("sampling", "steps"): SAMPLING_STEPS.get(method, other),
        ("eval", "tolerance"): 1e-3 if doubling else 5e-4,
    }
