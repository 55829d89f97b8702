"""CIFAR-10, VP SDE, the deep DDPM++ with 8 residual blocks a level."""

from scoremle.experiment import defaults


def get_config():
    config = defaults.get_config()
    config.training.n_iters = 950_001
    config.model.num_res_blocks = 8
    return config
