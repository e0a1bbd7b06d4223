"""A run's config: its fields, the command line, and their reference page."""
