"""Compiles a model into a program."""
