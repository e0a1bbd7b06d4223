"""VQ-VAE and VQ-VAE-2."""
