"""ImageNet 32x32, sub-VP SDE, DDPM++ with 4 residual blocks a level.

The SDE sets the smallest times of training and sampling: both 1e-2 (see defaults.py).
"""

from scoremle.experiment.configs.vp import imagenet32_ddpmpp_continuous as vp


def get_config():
    config = vp.get_config()
    config.training.sde = "subvpsde"
    return config
