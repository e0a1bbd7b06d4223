"""Benchmarks of a training step, the quantisers and `kvae.SOM`: `python -m kvae.benchmark`."""
