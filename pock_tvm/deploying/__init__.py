"""Programs on devices: stand-alone bundles of C, and training over a network."""
