"""One thread per test process: the networks are tiny, and other tests run beside these."""

import torch

torch.set_num_threads(1)
