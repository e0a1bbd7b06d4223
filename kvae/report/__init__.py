"""Compares runs: tables in Markdown, curves, and an HTML page; `python -m kvae.report` is the program."""
