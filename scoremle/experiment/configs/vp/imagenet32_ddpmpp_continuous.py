"""ImageNet 32x32, VP SDE, DDPM++ with 4 residual blocks a level."""

from scoremle.experiment import defaults


def get_config():
    config = defaults.get_config()
    config.data.dataset = "ImageNet"
    config.data.random_flip = False
    config.model.dropout = 0.0
    config.eval.num_repeats = 1
    config.deq.variant = "imagenet32"
    config.deq.filters = 128
    config.deq.blocks = 8
    config.deq.couplings = 8
    return config


def resolve(config):
    """As by default, but likelihood training with importance sampling starts later."""
    training = config.training
    likelihood = training.likelihood_weighting and training.importance_weighting
    if training.smallest_time is None and training.sde.lower() == "vpsde" and likelihood:
        training.smallest_time = 5e-5
    defaults.resolve(config)
