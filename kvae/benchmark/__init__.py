"""What things cost: `python -m kvae.benchmark`."""
