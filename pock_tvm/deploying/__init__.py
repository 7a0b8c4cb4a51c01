"""Stand-alone bundles: programs as C, for devices without Python."""
