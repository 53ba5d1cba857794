"""plumbing/inputs.py: folders, links and pipes."""

import gzip
import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from plumbing import results
from plumbing.inputs import files_in

RECORD = {"prompt": "Hi.", "response": "Ho."}


def test_folders_with_brackets(tmp_path):
    (tmp_path / "a[1]").mkdir()
    (tmp_path / "a[1]" / "x.txt").write_text("x")
    assert files_in([str(tmp_path / "a[1]")]) == (str(tmp_path / "a[1]" / "x.txt"),)


def test_a_link_to_a_folder_is_followed_once(tmp_path):
    """Two of them to where they lie would make 2^40 paths."""
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "a").symlink_to(tmp_path / "x.txt")
    assert files_in(str(tmp_path)) == tuple(str(tmp_path / x) for x in ("a", "x.txt"))
    for name in "bc":
        (tmp_path / name).symlink_to(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "y.txt").write_text("y")
    (tmp_path / "e").symlink_to(tmp_path / "d")
    found = files_in(str(tmp_path))
    assert found == tuple(str(tmp_path / x) for x in ("a", "d/y.txt", "x.txt"))


def test_a_folder_however_deep(tmp_path):
    """Deeper than Python calls itself."""
    deep = tmp_path / "/".join("d" * 1500)
    (tmp_path / ".stays").write_text("")
    made = tmp_path
    for _ in range(15):                        # a hundred at once: mkdir calls itself, too
        made = made / "/".join("d" * 100)
        os.makedirs(made)
    (deep / "x.txt").write_text("x")
    try:
        assert files_in(str(tmp_path)) == (str(deep / "x.txt"),)
    finally:
        os.remove(deep / "x.txt")
        os.removedirs(deep)                    # or pytest, which calls itself, could not


def test_results_in_a_folder_are_no_data(tmp_path):
    """A run that was cut off finds the data it began with."""
    for name in ("m.pt", "m.pt.part", "m.pt.log.jsonl", "m.pt.lock", "x.made.json", "x.tmp"):
        (tmp_path / name).write_text("PK\3\4")
    for name in ("europarl.pt", "log.jsonl.txt", "x.jsonl"):
        (tmp_path / name).write_text("x")
    found = files_in(str(tmp_path))
    assert found == tuple(str(tmp_path / x) for x in ("europarl.pt", "log.jsonl.txt", "x.jsonl"))


def test_an_empty_folder_is_not_taken_for_no_files(tmp_path):
    """Without files a stage takes the sandbox's own data."""
    (tmp_path / "m.pt").write_text("PK\3\4")
    with pytest.raises(ValueError, match="is a folder that holds no file of data"):
        files_in(str(tmp_path))


def test_a_folder_is_as_good_as_its_files(tmp_path):
    """To the hashes by which a finished command knows its inputs."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in "ba":
        (folder / name).write_text(name)
    paths = tuple(str(folder / name) for name in "ab")
    cfg = SimpleNamespace(out="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "asdict", vars)
        one, other = (results.provenance(cfg, "sft", {"data": data})
                      for data in (paths, (str(folder),)))
    assert one == other and len(one["inputs"]["data"]) == 2


def test_a_pipe_is_read_once_and_then_a_file(tmp_path):
    """A stage reads each of its inputs twice: to hash it, and to train on it."""
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)

    def write():
        with open(pipe, "w") as f:
            f.write("said")

    threading.Thread(target=write).start()
    [first], [second] = files_in(pipe), files_in((pipe,))
    assert first == second != pipe
    with open(first) as f:
        assert f.read() == "said"


def test_what_another_command_writes(root, tmp_path):
    """Into the standard input, packed, or by the shell's <(...)."""
    raw = json.dumps(RECORD).encode()
    (tmp_path / "x").write_bytes(raw)
    said = subprocess.run([sys.executable, "data.py", "-"], cwd=root, input=gzip.compress(raw),
                          check=True, capture_output=True).stdout.decode()
    assert "stdin: 1 demonstrations; data: 1 read as demonstrations" in said
    command = f"{sys.executable} data.py <(cat {tmp_path}/x)"
    again = subprocess.run(["bash", "-c", command], cwd=root, check=True, capture_output=True)
    assert ": 1 demonstrations; data: 1 read as demonstrations" in again.stdout.decode()


def test_nobody_is_made_to_type_data(root):
    import pty

    _, terminal = pty.openpty()
    found = subprocess.run([sys.executable, "data.py", "-"], check=False, cwd=root, stdin=terminal,
                           capture_output=True, timeout=60)
    assert found.returncode == 2 and b"error: - is what another command writes" in found.stderr
