"""Texts of kernels in each dialect: what TVM writes, made fit for every device, and checked."""
