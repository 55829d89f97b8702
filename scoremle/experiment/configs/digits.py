"""scikit-learn's handwritten digits (8x8, 17 levels): a whole experiment in minutes on a CPU."""

from scoremle.experiment import defaults


def get_config():
    config = defaults.get_config()
    training, deq, evaluation, data, model, optim = (
        config[section] for section in ("training", "deq", "eval", "data", "model", "optim")
    )
    training.likelihood_weighting = True
    training.importance_weighting = True
    training.stratified = True
    training.batch_size = 64
    training.n_iters = 2400
    training.snapshot_freq = 800
    training.snapshot_freq_for_preemption = 400

    evaluation.batch_size = 360
    evaluation.num_samples = 100
    evaluation.num_repeats = 1
    evaluation.probes = 2  # two differ by their errors alone, which so are told
    evaluation.bound_draws = 64

    data.dataset = "digits"
    data.image_size = 8
    data.num_channels = 1
    data.random_flip = False
    data.uniform_dequantization = True

    model.nf = 16
    model.ch_mult = (1, 2)
    model.num_res_blocks = 1
    model.attn_resolutions = (4,)
    model.ema_rate = 0.995
    model.dropout = 0.0

    deq.n_iters = 800
    deq.filters = 32
    deq.components = 8
    deq.blocks = 1

    optim.lr = 2e-3
    optim.warmup = 100
    return config
