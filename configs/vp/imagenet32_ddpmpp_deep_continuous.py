from scoremle.experiment.configs.vp.imagenet32_ddpmpp_deep_continuous import get_config, resolve
