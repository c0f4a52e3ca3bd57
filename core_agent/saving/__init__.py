"""Model files, checkpoints and environment states. Imports ``networks`` and ``replay``."""
