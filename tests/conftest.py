"""What all tests share. They need no network and no GPU, and finish in seconds."""

import os
import sys

import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root():
    """The folder of the source files."""
    return ROOT


@pytest.fixture(scope="session")
def enc():
    """The sandbox's tokenizer."""
    import data

    return data.get_tokenizer("sandbox")
