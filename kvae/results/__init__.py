"""What runs have found, seed by seed, and side by side."""
