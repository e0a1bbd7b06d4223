"""A prior over the codes of images: a transformer from which kvae.sample draws new images.

    python -m kvae.main --config=configs/tokens_prior.py --config.dataset.path=runs/photos

`dataset.path` is the run whose codes the prior learns, or a folder from python -m kvae.tokenize. For 5,532 images of
8 x 8 codes, a run takes two and a half minutes on two CPU cores.
"""

import ml_collections
from variants import small_prior, vary


def get_config(variant=""):
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.replicas = 1
    config.steps = 1_000
    config.batch_size = 64
    config.micro_batches = 1
    config.log_every_steps = 50
    config.evaluate_every_steps = 100
    config.checkpoint_every_steps = 100
    config.patience_evaluations = 3  # a prior trained on few images soon overfits

    config.dataset = ml_collections.ConfigDict()
    config.dataset.name = "tokens"
    config.dataset.path = ""
    config.dataset.validation_fraction = 0.1
    config.dataset.train_examples = 0
    config.dataset.numbering = "as_trained"

    config.model = ml_collections.ConfigDict()
    config.model.name = "prior"
    config.model.width = 64
    config.model.depth = 2
    config.model.num_heads = 4
    config.model.dropout = 0.1
    config.model.embeddings = ("codeword", "table")
    config.model.head = "softmax"
    config.model.loss = "one_hot"
    config.model.smoothing = 0.1
    config.model.temperature = 0.5
    config.model.conditional = False
    config.model.codebooks = ()  # read from the tokens
    config.model.label_names = ()  # read from the tokens
    config.model.dtype = "float32"

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cooldown"
    config.optimizer.warmup = ((100, 3e-4),)
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0

    return vary(config, variant, smoke=small_prior)
