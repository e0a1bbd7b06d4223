"""`python -m kvae.report`: tables, curves and an HTML page of runs."""
