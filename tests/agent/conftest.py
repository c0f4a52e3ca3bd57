"""Tiny networks are quickest on one thread, and leave the other cores to other tests."""

import torch

torch.set_num_threads(1)
