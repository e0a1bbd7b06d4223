"""A config: its fields, the command line, and the reference page."""
