"""The replay buffer of episodes. Imports ``networks``."""
