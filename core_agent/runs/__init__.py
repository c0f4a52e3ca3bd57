"""Training runs in folders, evaluation, videos, plots. Imports ``agents`` and all below it."""
