"""Measurements. Each module has `run(scale) -> list[Result]`; at a tiny scale it is a test."""
