"""VQ-VAE on 32 x 32 crops of Debian's wallpapers, to train for as long as Irie et al. (2023) without CIFAR-10.

    python -m kvae.main --config=configs/wallpapers_vqvae.py
    python launch/sweep.py --table=3 --dataset=folder

The pictures come from six Debian packages (222 MB). On any Debian or Ubuntu, without installing the packages:

    apt-get download gnome-backgrounds mate-backgrounds lomiri-wallpapers-16.04 lomiri-wallpapers-20.04
    apt-get download plasma-workspace-wallpapers ukui-wallpapers
    for package in *.deb; do dpkg -x $package wallpapers; done
    find wallpapers -type l -delete
    find wallpapers -regextype egrep -regex '.*(screenshot[.].*|_dark/.*|-d[.]webp|/(720|1080|1622)x.*)' -delete
    find wallpapers -regextype egrep -regex '.*(Elephants_.*|MATE-Stripes.*|Mate-[DRW].*|abstract/[A-GSW].*png)' -delete

The last two leave one version of each picture. Without them, a picture may be used for training and its dark variant,
its screenshot or another aspect ratio for validation. They also delete transparent overlays.

The first start cuts 66,220 crops of 86 pictures into a file of 203 MB, in 20 seconds on two CPU cores; 8 whole pictures
are held out. The hyper-parameters equal the ones in configs/cifar10_vqvae.py, with a quarter of the batch and a third
of the steps.
"""

import ml_collections
from variants import few_crops, vary


def get_config(variant=""):
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.replicas = 1
    config.steps = 10_000
    config.batch_size = 64
    config.micro_batches = 1
    config.log_every_steps = 100
    config.evaluate_every_steps = 1_000
    config.checkpoint_every_steps = 1_000
    config.patience_evaluations = 0  # never stops early

    config.dataset = ml_collections.ConfigDict()
    config.dataset.name = "folder"
    config.dataset.path = "wallpapers"
    config.dataset.size = 32
    config.dataset.crop = True
    config.dataset.crops_per_image = 770
    config.dataset.data_dir = ""  # the default folder of tensorflow-datasets, for the crops
    config.dataset.validation_fraction = 0.1
    config.dataset.skip_unreadable = True
    config.dataset.white = 0.0
    config.dataset.mean = ()  # measured over the training set
    config.dataset.std = ()

    config.model = ml_collections.ConfigDict()
    config.model.name = "vqvae"
    config.model.num_downsamples = 2  # codes are a quarter of the images' height and width
    config.model.channels = 128
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

    return vary(config, variant, smoke=few_crops)
