"""The codes of whole data sets, as files; `python -m kvae.tokenize` is the program."""
