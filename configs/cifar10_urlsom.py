"""URL-SOM on CIFAR-10, with the settings of Kermiche (2021), "Self-Organizing Representation Learning", Section V.

    python -m kvae.main --config=configs/cifar10_urlsom.py

Figure 4 of the paper reports `valid/neural_selectivity_train` of 70.3% and 70.6% (two runs) over all 60,000 images,
after about 322 epochs (Figure 5). We have not reproduced this. Use a GPU or TPU: 500 epochs on two CPU cores would take
several days (estimated).

The paper trains on train and test together, and so does this config. The variant `:held_out` trains on train alone and
also reports `valid/neural_selectivity_transferred` on test, which is not in the paper.

The paper does not specify everything. Shortcuts and pooling follow Keras' ResNet-20, which the paper cites;
`kvae/models/urlsom/resnet.py` lists the differences. Early stopping uses the loss of fixed views of the test images.
The paper also tries dropout 0.5 or L2 5e-4 ("improved slightly"). To do so, set `--config.model.dropout=0.5` or
`--config.model.projection_decay=5e-4`.
"""

import ml_collections
from variants import hold_out_test, small_urlsom, vary


def get_config(variant=""):
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.replicas = 1
    config.steps = 117_500  # 500 epochs of 235 steps; 60,000 / 256 is 234.4
    config.batch_size = 256
    config.micro_batches = 1
    config.log_every_steps = 235
    config.evaluate_every_steps = 235
    config.checkpoint_every_steps = 235
    config.patience_evaluations = 10  # epochs without a lower loss

    config.dataset = ml_collections.ConfigDict()
    config.dataset.name = "cifar10"
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
    config.model.flip_probability = 0.5
    config.model.jitter = 0.4
    config.model.jitter_probability = 0.8
    config.model.greyscale_probability = 0.5
    config.model.label_names = (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
    )  # fmt: skip
    config.model.dtype = "float32"

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "constant"
    config.optimizer.warmup = ((1_175, 1e-4), (2_350, 5e-4))  # epochs 5 and 10
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0  # gradients are not clipped

    return vary(config, variant, smoke=small_urlsom, held_out=hold_out_test)
