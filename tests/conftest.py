"""Set before any library is imported: one thread, no network, no colours, a fixed seed."""

import os
from collections.abc import Iterator

# Tiny models run beside worker processes: more threads are slower, and sums would differ by cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
# Nothing may be downloaded: a test that needs the network is wrong.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["NO_COLOR"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("PLANNER_DEBUG", None)

import random
import sys

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Give every test the same random numbers; torch is seeded only where it is in use."""
    random.seed(0)
    np.random.seed(0)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
    yield
