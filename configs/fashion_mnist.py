from scoremle.experiment.configs.fashion_mnist import get_config
