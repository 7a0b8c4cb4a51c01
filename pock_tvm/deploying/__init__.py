"""Stand-alone bundles: a program as C that needs neither Python nor TVM."""
