"""The program `python -m kvae.tokenize`, which encodes images to files of codes and decodes such files."""
