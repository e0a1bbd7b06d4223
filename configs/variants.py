"""Variants of configs: `--config=configs/photos_vqvae.py:smoke` selects the variant `smoke` of that config."""


def vary(config, variant, **variants):
    """Applies the function called `variant` to the config, in place, and returns the config; "" changes nothing."""
    if variant and variant not in variants:
        raise ValueError(f"variant is {variant!r}; it must be one of {', '.join(variants)}")
    if variant:
        variants[variant](config)
    return config


def few_steps(config):
    """Trains for four steps."""
    config.update(steps=4, batch_size=32, log_every_steps=2, evaluate_every_steps=4, checkpoint_every_steps=4)


def small_vqvae(config):
    """Trains a small VQ-VAE for four steps."""
    few_steps(config)
    config.model.update(channels=16, residual_channels=8, residual_blocks=1)
    config.model.quantizer.grid_shape = (4, 8)


def small_vqvae_and_images(config):
    """Trains a small VQ-VAE on 32-pixel images for four steps."""
    small_vqvae(config)
    config.dataset.size = 32


def few_crops(config):
    """Trains a small VQ-VAE for four steps, on four crops of each image."""
    small_vqvae_and_images(config)
    config.dataset.crops_per_image = 4


def small_urlsom(config):
    """Trains a small URL-SOM for four steps."""
    few_steps(config)
    config.model.update(grid_shape=(4, 5), channels=(4, 8), blocks=1)
    if config.optimizer.warmup:
        config.optimizer.warmup = ((2, 1e-4), (3, 5e-4))


def hold_out_test(config):
    """Holds out the test set from training."""
    config.dataset.train_split = "train"


def small_prior(config):
    """Trains a small prior for four steps, on digits whose pixels are codes, so that it needs no folder of tokens."""
    few_steps(config)
    config.dataset = type(config)({"name": "digit_codes"})
    config.model.update(width=16, depth=1, num_heads=2)
    config.optimizer.warmup = ((2, 1e-4),)
