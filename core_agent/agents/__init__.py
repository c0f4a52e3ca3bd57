"""The algorithms, policies and presets. Imports all packages but ``runs`` and ``table5``."""
