"""Your own colour images at 16x16: a small DDPM++ that a CPU trains in minutes.

For larger images set data.image_size, and give the network more: model.nf, steps, warm-up.
"""

from scoremle.experiment import defaults


def get_config():
    config = defaults.get_config()
    training, evaluation, data, model, optim = (
        config[section] for section in ("training", "eval", "data", "model", "optim")
    )
    training.likelihood_weighting = True
    training.importance_weighting = True
    training.stratified = True
    training.batch_size = 64
    training.n_iters = 500
    training.snapshot_freq = 500
    training.snapshot_freq_for_preemption = 250

    evaluation.batch_size = 100
    evaluation.num_samples = 64
    evaluation.num_repeats = 1
    evaluation.nodes = 48
    evaluation.bound_draws = 16

    data.dataset = "images"
    data.fit = "resize"
    data.image_size = 16
    data.num_channels = 3
    data.random_flip = False
    data.uniform_dequantization = True

    model.nf = 16
    model.ch_mult = (1, 2, 2)
    model.num_res_blocks = 1
    model.attn_resolutions = (8,)
    model.ema_rate = 0.995
    model.dropout = 0.0

    optim.lr = 2e-3
    optim.warmup = 100
    return config
