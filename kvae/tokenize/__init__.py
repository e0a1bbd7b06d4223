"""Encodes data sets to files of codes, and decodes them; `python -m kvae.tokenize` is the program."""
