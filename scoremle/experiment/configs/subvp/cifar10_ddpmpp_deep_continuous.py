"""CIFAR-10, sub-VP SDE, the deep DDPM++ with 8 residual blocks a level.

The SDE sets the smallest times of training and sampling: both 1e-2 (see defaults.py).
"""

from scoremle.experiment.configs.vp import cifar10_ddpmpp_deep_continuous as vp


def get_config():
    config = vp.get_config()
    config.training.sde = "subvpsde"
    return config
