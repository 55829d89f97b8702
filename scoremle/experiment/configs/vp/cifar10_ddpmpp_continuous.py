"""CIFAR-10, VP SDE, DDPM++ with 4 residual blocks a level: the defaults, as published."""

from scoremle.experiment import defaults

get_config = defaults.get_config
