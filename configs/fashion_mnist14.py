from scoremle.experiment.configs.fashion_mnist14 import get_config
