"""URL-SOM on SVHN, with the settings of Kermiche (2021), "Self-Organizing Representation Learning", Section V.

    python -m kvae.main --config=configs/svhn_urlsom.py

Expected: `valid/neural_selectivity_train`, over all 99,289 images as in the paper, of 91.5%, after 188 epochs (Figure
8). The paper trains on train and test together, and so does this file; `:held_out` trains on train alone, and judges
test by it: a figure (`valid/neural_selectivity_transferred`) that the paper lacks.

All is as in configs/cifar10_urlsom.py, which also says what the paper leaves open, but that no digit is flipped.
"""

import ml_collections
from variants import small_urlsom, train_on_all, vary


def get_config(variant=""):
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.replicas = 1
    config.steps = 194_000  # 500 epochs of 388 steps; 99,289 / 256 is 387.8
    config.batch_size = 256
    config.micro_batches = 1
    config.log_every_steps = 388
    config.evaluate_every_steps = 388
    config.checkpoint_every_steps = 388
    config.patience_evaluations = 10  # epochs without a lower loss

    config.dataset = ml_collections.ConfigDict()
    config.dataset.name = "svhn"
    config.dataset.data_dir = ""  # tensorflow-datasets' own folder
    config.dataset.train_split = "train+test"
    config.dataset.validation_split = "test"
    config.dataset.mean = ()  # measured over the training set
    config.dataset.std = ()

    config.model = ml_collections.ConfigDict()
    config.model.name = "urlsom"
    config.model.grid_shape = (30, 30)
    config.model.kernel = "gaussian"
    config.model.sigma = 5.0
    config.model.similarity_weight = 2.0
    config.model.collapse_weight = 1.0
    config.model.dropout = 0.0
    config.model.projection_decay = 0.0
    config.model.channels = (16, 48, 256)
    config.model.blocks = 3
    config.model.crop_sizes = (22, 32)
    config.model.flip_probability = 0.0  # mirrored digits are no digits
    config.model.jitter = 0.4
    config.model.jitter_probability = 0.8
    config.model.greyscale_probability = 0.5
    config.model.label_names = tuple("0123456789")
    config.model.dtype = "float32"

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "constant"
    config.optimizer.warmup = ((1_940, 1e-4), (3_880, 5e-4))  # epochs 5 and 10
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0  # gradients are not clipped

    return vary(config, variant, smoke=small_urlsom, held_out=train_on_all)
