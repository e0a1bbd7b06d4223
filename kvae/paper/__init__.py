"""The papers' experiments: settings, tables and figures from finished runs; see kvae/paper/README.md."""
