"""The room where records become tables."""
