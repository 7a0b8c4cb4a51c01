"""Runs a program: all that is copied to a device. Imports neither the compiler nor PyTorch."""
