"""The tables and figures of the papers, from finished runs."""
