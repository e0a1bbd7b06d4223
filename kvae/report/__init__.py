"""The program `python -m kvae.report`, which compares runs: Markdown tables, curves, and an HTML page."""
