"""Whether the processes that a function starts outlive the process in which it runs."""

import multiprocessing
import os
import signal


def outlives(start, seconds=10):
    """Call start() in a process of its own, whose processes say that they run by `hello`, kill it
    with SIGKILL, and see whether one of them is there after some seconds."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    process = fork.Process(target=run, args=(start, there))
    process.start()
    there.close()
    assert here.recv() == "hello"
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    # the pipe ends when the last process that holds its other end does
    try:
        return not here.poll(seconds) or bool(here.recv())
    except EOFError:
        return False


PIPE = []  # inherited by whatever is forked


def run(start, pipe):
    PIPE.append(pipe)
    start()


def hello():
    PIPE[0].send("hello")
