"""Loop nests for the kernels of training, per family of target."""
