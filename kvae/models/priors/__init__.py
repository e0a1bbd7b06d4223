"""Priors over codes: models of p(codes), from which new images are sampled."""
