"""Shared machinery: errors, fields, files, buckets, command-line programs and digests."""
