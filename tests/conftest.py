"""What all tests share. They need no network and no GPU, and finish in seconds."""

import importlib
import os
import sys

import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHARED = os.path.join(os.path.dirname(ROOT), "shared", "data")
sys.path.insert(0, ROOT)
torch.set_num_threads(1)
LONGEST = ("test_pipeline.py", "test_browser.py", "test_cuda.py", "test_resume.py",
           "test_kills.py", "test_processes.py")


def pytest_collection_modifyitems(items):
    """What takes longest begins first: where cores share the files none waits for it at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """The folder in which tokens of text are kept, also by the commands that tests start."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


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


@pytest.fixture(scope="session")
def hf():
    """transformers, without a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        if os.environ.get("TRANSFORMERS_REQUIRED"):
            found = importlib.import_module("transformers")
        else:
            found = pytest.importorskip("transformers")
        found.logging.set_verbosity_error()
        found.logging.disable_progress_bar()
        yield found


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A file of 316 ranks."""
    from folders import small_ranks

    return small_ranks(tmp_path_factory.mktemp("ranks") / "small.tiktoken")


@pytest.fixture(params=["small", "gpt2"])
def ranks(request, small, real):
    """A file of ranks: one of 316 tokens and, where it is, GPT-2's."""
    return small if request.param == "small" else real("tokenizer/gpt2.tiktoken")
