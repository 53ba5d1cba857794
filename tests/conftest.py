"""What all tests share. They need no network and no GPU, and finish in seconds."""

import os
import sys

import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHARED = os.path.join(os.path.dirname(ROOT), "shared", "data")
sys.path.insert(0, ROOT)
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root():
    """The folder of the source files."""
    return ROOT


@pytest.fixture(scope="session")
def enc():
    """The sandbox's tokenizer."""
    import interop

    return interop.get_tokenizer("sandbox")


@pytest.fixture(scope="session")
def real():
    """Path of a published file in ../shared/data. Where it is not, the test is skipped, or fails if
    REAL_DATA_REQUIRED is set."""

    def path(name):
        found = os.path.join(SHARED, name)
        if not os.path.isfile(found):
            if os.environ.get("REAL_DATA_REQUIRED"):
                pytest.fail(f"REAL_DATA_REQUIRED is set and {found} does not exist")
            pytest.skip(f"the real data is not here: {found} does not exist")
        return found

    return path
