"""The room where questions are answered, and the only one that wires the others together."""
