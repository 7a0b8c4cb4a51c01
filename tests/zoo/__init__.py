"""Real architectures, each a row: one step of a full and of a sparse scheme equals PyTorch's. ``make zoo`` runs all."""
