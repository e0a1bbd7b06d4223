"""Variants of the configs: `--config=configs/photos_vqvae.py:smoke` applies `smoke` to that config."""


def vary(config, variant, **variants):
    """Returns the config, changed in place by the function called `variant`; unchanged if `variant` is empty."""
    if variant and variant not in variants:
        raise ValueError(f"there is no variant {variant!r}; there is {', '.join(variants)}")
    if variant:
        variants[variant](config)
    return config


def few_steps(config):
    config.update(steps=4, batch_size=32, log_every_steps=2, evaluate_every_steps=4, checkpoint_every_steps=4)


def small_vqvae(config):
    few_steps(config)
    config.model.update(channels=16, residual_channels=8, residual_blocks=1)
    config.model.quantizer.grid_shape = (4, 8)


def small_vqvae_and_images(config):
    small_vqvae(config)
    config.dataset.size = 32


def small_urlsom(config):
    few_steps(config)
    config.model.update(grid_shape=(4, 5), channels=(4, 8), blocks=1)
    if config.optimizer.warmup:
        config.optimizer.warmup = ((2, 1e-4), (3, 5e-4))


def hold_out_test(config):
    config.dataset.train_split = "train"
