"""Callbacks and helpers for libraries people train with. Each imports its library only when it is used."""
