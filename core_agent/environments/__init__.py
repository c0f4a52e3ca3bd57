"""Environments from ids, in this process or in others. Imports ``saving``."""
