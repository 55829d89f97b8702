"""Fashion-MNIST (28x28, grey): a small DDPM++ that a CPU trains in about an hour."""

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
    training.n_iters = 4000
    training.snapshot_freq = 1000
    training.snapshot_freq_for_preemption = 500

    evaluation.batch_size = 250
    evaluation.num_samples = 100
    evaluation.num_repeats = 1
    evaluation.bound_draws = 16

    data.dataset = "fashion_mnist"
    data.image_size = 28
    data.num_channels = 1
    data.random_flip = False
    data.uniform_dequantization = True

    model.nf = 16
    model.ch_mult = (1, 2, 2)
    model.num_res_blocks = 1
    model.attn_resolutions = (7,)
    model.ema_rate = 0.999
    model.dropout = 0.0

    deq.n_iters = 1000
    deq.filters = 32
    deq.components = 8
    deq.blocks = 1

    optim.lr = 1e-3
    optim.warmup = 500
    return config
