"""Figures: arrays in, a PNG file out."""
