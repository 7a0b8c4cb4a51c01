"""Operators that training adds to Relax, and the registry of all operators."""
