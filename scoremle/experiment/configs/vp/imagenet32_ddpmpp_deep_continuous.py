"""ImageNet 32x32, VP SDE, the deep DDPM++ with 8 residual blocks a level."""

from scoremle.experiment.configs.vp import imagenet32_ddpmpp_continuous as shallow


def get_config():
    config = shallow.get_config()
    config.training.n_iters = 950_001
    config.model.num_res_blocks = 8
    return config


resolve = shallow.resolve
