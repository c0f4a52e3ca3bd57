"""Neural networks, their losses and optimisation steps. Imports torch and ``validation``."""
