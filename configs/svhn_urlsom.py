"""URL-SOM on SVHN, with the settings of Kermiche (2021), "Self-Organizing Representation Learning", Section V.

    python -m kvae.main --config=configs/svhn_urlsom.py

Figure 8 of the paper reports `valid/neural_selectivity_train` of 91.5% over all 99,289 images, after 188 epochs. We
have not reproduced this. Use a GPU or TPU: 500 epochs on two CPU cores would take more than a week (estimated).

The paper trains on train and test together, and so does this config. The variant `:held_out` trains on train alone and
also reports `valid/neural_selectivity_transferred` on test, which is not in the paper.

Everything else is as in configs/cifar10_urlsom.py, except that images are not flipped.
"""

import ml_collections
from variants import hold_out_test, small_urlsom, vary


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
    config.dataset.data_dir = ""  # the default folder of tensorflow-datasets
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
    config.model.flip_probability = 0.0  # mirrored digits are not digits
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

    return vary(config, variant, smoke=small_urlsom, held_out=hold_out_test)
