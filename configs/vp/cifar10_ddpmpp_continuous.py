"""CIFAR-10, VP SDE, DDPM++ with 4 residual blocks a level: the defaults, as published."""

from configs import default

get_config = default.get_config
