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
    pid = here.recv()
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    try:
        if here.poll(seconds):
            here.recv()
    except EOFError:  # no process holds the other end any more
        return False
    os.kill(pid, signal.SIGKILL)
    return True


PIPE = []  # inherited by whatever is forked


def run(start, pipe):
    PIPE.append(pipe)
    start()


def hello():
    PIPE[0].send(os.getpid())
