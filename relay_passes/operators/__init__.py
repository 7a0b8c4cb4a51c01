"""Operators that training adds to Relax, and the registry that they stand in."""
