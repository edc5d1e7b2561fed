"""Blobs: bytes named by their SHA-256, and where they lie."""
