"""The channels over which a final record is told."""
