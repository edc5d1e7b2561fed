"""The logs a server can write: SQLite files on one machine."""
