"""Settings of the whole suite: tiny tensors are fastest on one thread, and tests should not compete for the cores."""

import torch

torch.set_num_threads(1)
