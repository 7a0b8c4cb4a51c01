"""What a pass asks of a function."""
