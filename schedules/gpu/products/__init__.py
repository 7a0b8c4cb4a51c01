"""Products on GPUs: matrix products, convolutions, attention, and their gradients."""
