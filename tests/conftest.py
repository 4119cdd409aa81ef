"""One thread a test process: the suite runs a process on each core, and threads that wait for one another would only get in each other's way."""

import torch

torch.set_num_threads(1)
