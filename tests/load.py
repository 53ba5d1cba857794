"""How long the page's server lets people wait: python -m tests.load [--labelers 50 --rate 20]

Labelers get a task and send a ranking, `rate` requests a second together, each at random moments.
Printed are how many were answered, and the time of the median, of 99 % and of the slowest.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time

from plumbing.results import write_jsonl
from tests.test_server import get, post, ranking, tasks_of


def work(name, token, port, args, took, errors):
    """One labeler: every answer's seconds go into `took`."""
    rng, end, n = random.Random(name), time.monotonic() + args.seconds, 0
    while time.monotonic() < end:
        time.sleep(rng.expovariate(args.rate / args.labelers / 2))
        began = time.perf_counter()
        task = get(port, token)
        took.append(time.perf_counter() - began)
        began = time.perf_counter()
        status, _ = post(port, token, ranking(task, f"{name}-{n:06}"))
        took.append(time.perf_counter() - began)
        errors += [status] if status != 200 else []
        n += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("labelers", 50), ("rate", 20), ("seconds", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    names = [f"l{n}" for n in range(args.labelers)]
    with tempfile.TemporaryDirectory() as folder:
        write_jsonl(f"{folder}/tasks.jsonl", tasks_of(5000, k=6))
        command = [sys.executable, "page.py", "rank", f"{folder}/tasks.jsonl", "--port", "0",
                   "--out", f"{folder}/human", "--labelers", *names]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            links = {}
            while len(links) < len(names):
                name, _, link = server.stdout.readline().strip().partition(": ")
                if link.startswith("http"):
                    links[name] = link
            port = int(link.split(":")[2].split("/")[0])
            took, errors = [], []
            threads = [threading.Thread(target=work, args=(
                name, link.partition("#")[2], port, args, took, errors))
                for name, link in links.items()]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            server.terminate()
        with open(f"{folder}/human/rankings.jsonl", encoding="utf-8") as f:
            kept = len({json.loads(line)["id"] for line in f})
    took.sort()
    print(f"{len(took):,} requests of {args.labelers} labelers in {args.seconds} s, "
          f"{len(errors)} refused, {kept:,} rankings kept: median {took[len(took) // 2]:.3f} s, "
          f"99 % {took[int(len(took) * 0.99)]:.3f} s, slowest {took[-1]:.3f} s")


if __name__ == "__main__":
    main()
