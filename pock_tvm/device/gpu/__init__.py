"""Runs programs on GPUs: one back end a file. Needs neither TVM nor a compiler."""
