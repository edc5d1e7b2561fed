"""The questions: SQL over the store."""
