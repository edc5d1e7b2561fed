"""The events of registries: versions linked into a collection, what it asks of them, and how they are promoted.

Made by the server's commands only; the fold of artifacts judges them.
"""

from __future__ import annotations
