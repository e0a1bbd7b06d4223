"""A small VQ-VAE on 32-pixel crops of photographs, to compute small versions of the paper's tables on a laptop.

    python -m kvae.main --config=configs/photos_sweep.py
    python launch/sweep.py --table=3 --dataset=photos

It needs no download. A run takes about a minute on two CPU cores.

Compared with configs/cifar10_vqvae.py, the network has half the width and the same 512 codes, and the batch is an
eighth of the size. The model is evaluated every 50 steps, so that the tables can show after how many steps the loss
comes within 10% of its minimum.
"""

import ml_collections
from variants import small_vqvae, vary


def get_config(variant=""):
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.replicas = 1
    config.steps = 800
    config.batch_size = 32
    config.micro_batches = 1
    config.log_every_steps = 50
    config.evaluate_every_steps = 50
    config.checkpoint_every_steps = 400
    config.patience_evaluations = 0  # never stops early

    config.dataset = ml_collections.ConfigDict()
    config.dataset.name = "photos"
    config.dataset.size = 32
    config.dataset.data_dir = ""  # the default folder of tensorflow-datasets
    config.dataset.mean = ()  # measured over the training set
    config.dataset.std = ()

    config.model = ml_collections.ConfigDict()
    config.model.name = "vqvae"
    config.model.num_downsamples = 2  # codes are a quarter of the images' height and width
    config.model.channels = 64
    config.model.residual_channels = 32
    config.model.residual_blocks = 2
    config.model.embedding_dim = 64
    config.model.augmentations = ()
    config.model.dtype = "float32"

    config.model.quantizer = ml_collections.ConfigDict()
    config.model.quantizer.name = "kohonen"
    config.model.quantizer.grid_shape = (16, 32)
    config.model.quantizer.neighborhood = "hard"
    config.model.quantizer.topology = "plane"
    config.model.quantizer.initial_width = 1.0
    config.model.quantizer.lowest_width = 0.0
    config.model.quantizer.shrink_step = 0.1
    config.model.quantizer.radius = 1.5
    config.model.quantizer.decay = 0.99
    config.model.quantizer.init_count = 1.0
    config.model.quantizer.update_empty = True
    config.model.quantizer.commitment_weight = 0.25
    config.model.quantizer.metric = "euclidean"
    config.model.quantizer.gradient = "straight_through"
    config.model.quantizer.restart_below = 0.0  # never
    config.model.quantizer.start = "normal"
    config.model.quantizer.codebook_dim = None  # the length of the vectors

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "constant"
    config.optimizer.warmup = ()
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0

    return vary(config, variant, smoke=small_vqvae)
