"""VQ-VAE with a map of 16 x 32 codes on a folder of your own images, at 64 x 64 pixels.

    python -m kvae.main --config=configs/folder_vqvae.py --config.dataset.path=DIR

It reads images in every format that Pillow reads, also in subfolders. A run takes about a quarter of an hour on two CPU
cores.

The recipe is the same as in configs/photos_vqvae.py, without the augmentation "rot90".
"""

import ml_collections
from variants import small_vqvae_and_images, vary


def get_config(variant=""):
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.replicas = 1
    config.steps = 5_000
    config.batch_size = 32
    config.micro_batches = 1
    config.log_every_steps = 50
    config.evaluate_every_steps = 500
    config.checkpoint_every_steps = 500
    config.patience_evaluations = 0  # never stops early

    config.dataset = ml_collections.ConfigDict()
    config.dataset.name = "folder"
    config.dataset.path = ""
    config.dataset.size = 64
    config.dataset.crops_per_image = 0  # the whole image, once
    config.dataset.data_dir = ""  # unused without crops
    config.dataset.crop = True  # False resizes to a square and changes the aspect ratio
    config.dataset.validation_fraction = 0.1
    config.dataset.skip_unreadable = False
    config.dataset.white = 0.0
    config.dataset.mean = ()  # measured over the training set
    config.dataset.std = ()

    config.model = ml_collections.ConfigDict()
    config.model.name = "vqvae"
    config.model.num_downsamples = 2  # codes are a quarter of the images' height and width
    config.model.channels = 128
    config.model.residual_channels = 32
    config.model.residual_blocks = 2
    config.model.embedding_dim = 3
    config.model.augmentations = ("flip_horizontal",)
    config.model.dtype = "float32"

    config.model.quantizer = ml_collections.ConfigDict()
    config.model.quantizer.name = "kohonen"
    config.model.quantizer.grid_shape = (16, 32)
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
