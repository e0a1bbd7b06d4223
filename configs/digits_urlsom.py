"""URL-SOM on scikit-learn's digits: a map of 10 x 10 neurons, learned without labels.

    python -m kvae.main --config=configs/digits_urlsom.py

It needs no download and takes about three minutes on two CPU cores.
"""

import ml_collections
from variants import small_urlsom, vary


def get_config(variant=""):
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.replicas = 1
    config.steps = 1_650  # 150 epochs
    config.batch_size = 128
    config.micro_batches = 1
    config.log_every_steps = 11  # an epoch
    config.evaluate_every_steps = 110
    config.checkpoint_every_steps = 550
    config.patience_evaluations = 0  # never stops early

    config.dataset = ml_collections.ConfigDict()
    config.dataset.name = "digits"
    config.dataset.size = 16
    config.dataset.mean = ()  # measured over the training set
    config.dataset.std = ()

    config.model = ml_collections.ConfigDict()
    config.model.name = "urlsom"
    config.model.grid_shape = (10, 10)
    config.model.kernel = "gaussian"
    config.model.sigma = 0.7
    config.model.similarity_weight = 2.0
    config.model.collapse_weight = 1.0
    config.model.dropout = 0.0
    config.model.projection_decay = 0.0
    config.model.channels = (16, 32, 64)
    config.model.blocks = 1
    config.model.crop_sizes = (12, 18)
    config.model.flip_probability = 0.0
    config.model.jitter = 0.4
    config.model.jitter_probability = 0.8
    config.model.greyscale_probability = 0.0
    config.model.label_names = tuple("0123456789")
    config.model.dtype = "float32"

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "constant"
    config.optimizer.warmup = ()
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0  # gradients are not clipped

    return vary(config, variant, smoke=small_urlsom)
