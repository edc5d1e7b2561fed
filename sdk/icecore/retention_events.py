"""The events of what is kept and for how long: time to live, holds, and bytes that are gone.

Made by the server's commands and its own clockwork only; the fold of artifacts judges them.
"""

from __future__ import annotations
