from scoremle.experiment.configs.digits import get_config
