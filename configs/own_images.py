from scoremle.experiment.configs.own_images import get_config
