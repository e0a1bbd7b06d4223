"""Settings, tables and figures of the papers' experiments, from finished runs; see kvae/paper/README.md."""
