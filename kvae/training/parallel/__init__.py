"""Devices, replicas and processes."""
