"""Makefile: `make clean` removes what `make` made, and nothing else."""

import re
import subprocess


def make(root, *args):
    done = subprocess.run(
        ["make", "-C", root, *args], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def test_clean_removes_what_was_made_and_no_other_file(root, tmp_path):
    commands = make(root, "-n", f"OUT={tmp_path}", "all", "rounds")
    made = re.findall(rf"--out ({tmp_path}/\S+\.(?:pt|jsonl))", commands)
    assert len(made) == 8
    at = f"{tmp_path}/round-2"
    made += [f"{at}.jsonl", f"{at}-rm.pt", f"{at}.pt"]
    models = [path for path in made if path.endswith(".pt")]
    logs = [f"{path}.log.jsonl" for path in models] + [f"{path}.part" for path in models]
    (tmp_path / "report" / "rounds").mkdir(parents=True)
    reports = [f"{tmp_path}/report/report.json", f"{tmp_path}/report/rounds/report.md"]
    own = ["mine.pt", "ppo-2.pt", "data.jsonl", "my.log.jsonl", "report.md"]
    for path in [*made, *logs, *reports, *(f"{tmp_path}/{name}" for name in own)]:
        with open(path, "w") as f:
            f.write("x")
    make(root, f"OUT={tmp_path}", "clean")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(own)
