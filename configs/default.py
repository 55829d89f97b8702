from scoremle.experiment.defaults import get_config, resolve
