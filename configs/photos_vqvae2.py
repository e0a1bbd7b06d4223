"""VQ-VAE-2 with two maps of 16 x 16 codes on 64-pixel crops of the photographs that ship with scikit-image.

    python -m kvae.main --config=configs/photos_vqvae2.py

It needs no download and takes a few minutes on two CPU cores.

The architecture is the same as in the paper's ImageNet experiments, at half the width. The recipe is the same as in
configs/photos_vqvae.py, except for 8-dimensional codewords.
"""

import ml_collections
from variants import small_vqvae_and_images, vary


def get_config(variant=""):
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.replicas = 1
    config.steps = 1_000
    config.batch_size = 16
    config.micro_batches = 1
    config.log_every_steps = 50
    config.evaluate_every_steps = 250
    config.checkpoint_every_steps = 250
    config.patience_evaluations = 0  # never stops early

    config.dataset = ml_collections.ConfigDict()
    config.dataset.name = "photos"
    config.dataset.size = 64
    config.dataset.data_dir = ""  # the default folder of tensorflow-datasets
    config.dataset.mean = ()  # measured over the training set
    config.dataset.std = ()

    config.model = ml_collections.ConfigDict()
    config.model.name = "vqvae2"
    config.model.channels = 64
    config.model.residual_channels = 32
    config.model.residual_blocks = 2
    config.model.embedding_dim = 8
    config.model.augmentations = ("flip_horizontal", "rot90")
    config.model.dtype = "float32"

    config.model.quantizer = ml_collections.ConfigDict()
    config.model.quantizer.name = "kohonen"
    config.model.quantizer.grid_shape = (16, 16)
    config.model.quantizer.neighborhood = "gaussian"
    config.model.quantizer.topology = "plane"
    config.model.quantizer.initial_width = 2.0
    config.model.quantizer.lowest_width = 0.7071
    config.model.quantizer.shrink_step = 0.03
    config.model.quantizer.radius = 1.5
    config.model.quantizer.decay = 0.8
    config.model.quantizer.init_count = 1.0
    config.model.quantizer.update_empty = True
    config.model.quantizer.commitment_weight = 0.25
    config.model.quantizer.metric = "euclidean"
    config.model.quantizer.gradient = "straight_through"
    config.model.quantizer.restart_below = 0.0  # never
    config.model.quantizer.start = "normal"
    config.model.quantizer.codebook_dim = None  # the length of the vectors

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cooldown"
    config.optimizer.warmup = ()
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0

    return vary(config, variant, smoke=small_vqvae_and_images)
