"""What the measuring commands time."""
