"""Measures this machine: what its cores, caches and threads do, by micro-benchmarks of a few seconds."""
