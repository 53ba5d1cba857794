"""people/: what is on the disk, who gets which task, what is refused, what is reported."""

import contextlib
import itertools
import json
import math
import os
import random
import re
from collections import Counter
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from disk import full_disk

import interop
import sandbox
from people import desk as desks
from people import report
from people.desk import Desk, Refused, task_of
from people.store import FILES, Store
from plumbing.results import write_jsonl

KEYED = sandbox.eval_prompts(40, 0)


def tasks_of(n, k=3):
    """Tasks of k outputs each."""
    return [task_of("rank", {"prompt": [{"role": "user", "content": f"{i}?"}],
                             "responses": [f"{i} {x}" for x in "abcdefghi"[:k]]}) for i in range(n)]


def settings(labelers=("anna", "ben"), overlap=0.0, seed=0):
    return SimpleNamespace(labelers=labelers, overlap=overlap, seed=seed)


def sent(task, name, **more):
    """A ranking as the page sends it: as shown, the first best."""
    K = len(task["texts"])
    return {"id": name, "task": task["task"], "ranks": list(range(1, K + 1)),
            "ratings": [7 - k for k in range(K)], "flags": [[] for _ in range(K)],
            "seconds": 3.14} | more


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "human")


@contextlib.contextmanager
def opened(folder):
    store = Store(folder)
    try:
        yield store
    finally:
        for file in (*store.files.values(), store.lock):
            os.close(file)


# ------------------------------------------------------------------------------------------------
# what is on the disk


def test_what_was_appended_is_there_when_the_folder_is_opened_again(folder):
    record = {"labeler": "anna", "task": "t", "id": "1", "reason": "naïve \u2028 👩\n"}
    with opened(folder) as store:
        for name in "12":
            store.append("skips", [record | {"id": name}])
    with opened(folder) as store:
        assert store.records["skips"] == [record, record | {"id": "2"}]
        assert all(not store.records[name] for name in FILES if name != "skips")
    assert os.stat(f"{folder}/skips.jsonl").st_mode & 0o777 == 0o600


def skipped(name):
    return {"labeler": "a", "task": "t", "id": name, "reason": "unclear"}


@pytest.mark.parametrize("torn", [b'{"labeler": "a', b"{", b'{"labeler": "a", "task": 1, "id": 2}'])
def test_a_torn_last_line_is_cut_off(folder, torn, capsys):
    with opened(folder) as store:
        store.append("skips", [skipped("1")])
    with open(f"{folder}/skips.jsonl", "ab") as f:
        f.write(torn)
    with opened(folder) as store:
        assert len(store.records["skips"]) == 1
        store.append("skips", [skipped("2")])
    assert f"cut off {len(torn)} bytes" in capsys.readouterr().out
    with opened(folder) as store:
        assert [r["id"] for r in store.records["skips"]] == ["1", "2"]


def test_a_whole_line_without_its_end_is_no_torn_one(folder, capsys):
    """What some editors leave."""
    with opened(folder) as store:
        store.append("skips", [skipped("1"), ])
    os.truncate(f"{folder}/skips.jsonl", os.path.getsize(f"{folder}/skips.jsonl") - 1)
    with opened(folder) as store:
        store.append("skips", [skipped("2")])
    with opened(folder) as store:
        assert [r["id"] for r in store.records["skips"]] == ["1", "2"]
    assert "cut off" not in capsys.readouterr().out


def test_a_submission_of_several_lines_is_there_as_a_whole_or_not_at_all(folder):
    with opened(folder) as store:
        store.append("skips", [skipped("1")])
        store.append("skips", [skipped("2")] * 3)
    with open(f"{folder}/skips.jsonl", "rb") as f:
        lines = f.read().splitlines(keepends=True)
    for kept in (lines[:2], lines[:3], [*lines[:3], lines[3][:30]]):
        with open(f"{folder}/skips.jsonl", "wb") as f:
            f.writelines(kept)
        with opened(folder) as store:
            assert [r["id"] for r in store.records["skips"]] == ["1"]
        assert os.path.getsize(f"{folder}/skips.jsonl") == len(lines[0])


@pytest.mark.parametrize("text", ["mine\nno end", '{"labeler": "a"}\n{"labe'])
def test_a_file_of_somebody_elses_is_left_as_it_is(folder, text):
    os.makedirs(folder)
    with open(f"{folder}/votes.jsonl", "w") as f:
        f.write(text)
    with pytest.raises(ValueError, match="votes.jsonl, line 1 was not written by page.py"):
        Store(folder)
    with open(f"{folder}/votes.jsonl") as f:
        assert f.read() == text


def test_a_file_that_was_replaced_is_written_no_more(folder):
    with opened(folder) as store:
        store.append("skips", [skipped("1")])
        os.rename(f"{folder}/skips.jsonl", f"{folder}/old")
        with pytest.raises(OSError, match="was replaced: start page.py again"):
            store.append("skips", [skipped("2")])
        with open(f"{folder}/skips.jsonl", "w"), pytest.raises(OSError, match="was replaced"):
            store.append("skips", [skipped("2")])
        assert len(store.records["skips"]) == 1


def test_what_could_not_be_cut_off_at_once_is_before_the_next_line(folder, monkeypatch):
    with opened(folder) as store:
        store.append("skips", [skipped("1")])
        with monkeypatch.context() as broken, full_disk(120), pytest.raises(OSError, match="torn"):
            broken.setattr(os, "ftruncate", mock.Mock(side_effect=OSError("torn")))
            store.append("skips", [skipped("2" * 100)])
        assert os.path.getsize(f"{folder}/skips.jsonl") == 120
        store.append("skips", [skipped("3")])
    with opened(folder) as store:
        assert [r["id"] for r in store.records["skips"]] == ["1", "3"]


VOTE = {"labeler": "a", "task": "t", "id": "1", "prompt": [], "responses": ["x", "y"],
        "ranks": [1, 2], "systems": ["s", "t"], "both_bad": False, "order": [1, 0]}


@pytest.mark.parametrize("line", [
    "no JSON", "[]", "1", "null", '{"labeler": "a"}', "[" * 100_000,
    *(json.dumps(VOTE | change) for change in (
        {"labeler": [1]}, {"id": ["c"]}, {"systems": 5}, {"systems": ["s"]}, {"ranks": None},
        {"order": [0]}, {"order": [0, 0]}, {"order": ["a", 1]}, {"responses": "xy"}))])
def test_a_line_that_is_not_ours_is_named(folder, line):
    os.makedirs(folder)
    with open(f"{folder}/votes.jsonl", "w") as f:
        f.write(json.dumps(VOTE) + "\n" + line + "\n")
    for ask in (Store, report.make):
        with pytest.raises(ValueError, match=r"votes.jsonl, line 2 was not written by page.py"):
            ask(folder)


def test_a_second_process_is_refused(folder):
    with opened(folder), pytest.raises(ValueError, match="human is in use by another page.py"):
        Store(folder)


def test_on_a_full_disk_nothing_is_written_and_nothing_counts(folder):
    [task] = tasks_of(1)
    with opened(folder) as store:
        desk = Desk([task], store, settings())
        got = desk.next_task("anna")
        with full_disk(50), pytest.raises(OSError):
            desk.submit("anna", sent(got, "a" * 8))
        assert os.path.getsize(f"{folder}/rankings.jsonl") == 0
        assert desk.submit("anna", sent(got, "a" * 8))["saved"] == "a" * 8
    assert len(interop.load("rankings", (f"{folder}/rankings.jsonl",), Counter(), flag="-")) == 1


# ------------------------------------------------------------------------------------------------
# who gets which task


def test_each_task_is_done_once_and_a_share_twice(folder):
    tasks, labelers = tasks_of(200), [f"l{n}" for n in range(4)]
    rng, ids = random.Random(0), itertools.count(10_000_000)
    with opened(folder) as store:
        desk = Desk(tasks, store, settings(labelers, overlap=0.25))
        did = Counter()
        while True:
            name = rng.choice(labelers)
            got = desk.next_task(name)
            if all(desk.next_task(x)["kind"] == "done" for x in labelers):
                break
            if got["kind"] != "done":
                desk.submit(name, sent(got, str(next(ids))))
                did[name, got["task"]] += 1
        assert set(did.values()) == {1}
        times = Counter(task for _, task in did)
        assert set(times.values()) == {1, 2} and len(times) == 200
        assert 30 < sum(n == 2 for n in times.values()) < 70
        orders = {name: [r["task"] for r in store.records["rankings"] if r["labeler"] == name]
                  for name in labelers}
        assert all(orders[name] != sorted(orders[name]) for name in labelers)


def test_a_task_that_somebody_has_before_them_goes_to_nobody_else(folder, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(desks.time, "monotonic", lambda: clock[0])
    with opened(folder) as store:
        desk = Desk(tasks_of(1), store, settings())
        first = desk.next_task("anna")
        assert desk.next_task("ben")["kind"] == "done"
        assert desk.next_task("anna")["task"] == first["task"]
        clock[0] += desks.LEASE + 1
        assert desk.next_task("ben")["task"] == first["task"]


def test_after_a_restart_nothing_is_asked_again_and_the_order_is_the_same(folder):
    tasks = tasks_of(10, k=5)
    with opened(folder) as store:
        desk = Desk(tasks, store, settings(["anna"]))
        for n in range(4):
            last = sent(desk.next_task("anna"), f"sent-{n:04}")
            desk.submit("anna", last)
        desk.submit("anna", {"id": "skipped-1", "task": desk.next_task("anna")["task"],
                             "skip": "unclear"})
        before = desk.next_task("anna")
        done = {r["task"] for name in FILES for r in store.records[name]}
    with opened(folder) as store:
        desk = Desk(tasks, store, settings(["anna"]))
        assert desk.next_task("anna") == before and before["task"] not in done
        assert (before["done"], before["left"]) == (5, 5)
        assert desk.submit("anna", last) == {"saved": "sent-0003"}          # sent again
        gone = Desk(tasks_of(1), store, settings(["anna"]))
        assert gone.submit("anna", last | {"task": "f" * 16}) == {"saved": "sent-0003"}
        assert len(store.records["rankings"]) == 4


def test_outputs_are_shown_in_an_order_of_each_labeler_and_kept_in_the_tasks(folder):
    tasks = tasks_of(30, k=4)
    with opened(folder) as store:
        desk = Desk(tasks, store, settings(["anna", "ben"], overlap=1.0))
        shown = {"anna": {}, "ben": {}}
        for name, n in itertools.product(shown, range(30)):
            got = desk.next_task(name)
            shown[name][got["task"]] = got["texts"]
            desk.submit(name, sent(got, f"{name}-{n:04}", flags=[["opinion"], [], [], ["moral"]]))
        by_id = {t.id: t for t in tasks}
        for r in store.records["rankings"]:
            saw, texts = shown[r["labeler"]][r["task"]], r["responses"]
            assert texts == by_id[r["task"]].texts and [texts[k] for k in r["order"]] == saw
            assert [r["ranks"][texts.index(x)] for x in saw] == [1, 2, 3, 4]
            assert [r["ratings"][texts.index(x)] for x in saw] == [7, 6, 5, 4]
            assert r["flags"][texts.index(saw[0])] == ["opinion"]
        assert sum(shown["anna"][t] == shown["ben"][t] for t in by_id) < 8
        assert len({tuple(r["order"]) for r in store.records["rankings"]}) > 15
    found = interop.load("rankings", (f"{folder}/rankings.jsonl",), Counter(), flag="--data")
    assert all(len(r.pairs) == 6 for r in found) and {r.labeler for r in found} == set(shown)


def test_what_is_taken_back_is_gone_and_asked_again_and_nothing_else(folder):
    with opened(folder) as store:
        desk = Desk(tasks_of(3), store, settings())
        first = desk.next_task("anna")
        desk.submit("ben", sent(desk.next_task("ben"), "of-ben-01"))
        desk.submit("anna", sent(first, "of-anna-1"))
        assert desk.undo("anna", {"id": "of-ben-01"}) == {"undone": "of-ben-01"}     # not hers
        assert len(store.records["rankings"]) == 2
        with full_disk(50), pytest.raises(Refused, match="rankings.jsonl"):
            desk.undo("anna", {"id": "of-anna-1"})
        assert len(store.records["rankings"]) == 2
        for _ in range(2):                                   # sent twice
            desk.undo("anna", {"id": "of-anna-1"})
        assert desk.next_task("anna") == first | {"left": 2}
        desk.submit("anna", sent(first, "of-anna-2", ranks=[3, 2, 1]))
        desk.submit("anna", {"id": "skipped-1", "task": desk.next_task("anna")["task"],
                             "skip": "oh"})
        desk.undo("anna", {"id": "skipped-1"})
        assert desk.next_task("anna")["left"] == 1
    with opened(folder) as store:
        records = store.records["rankings"]
        assert [r["id"] for r in records] == ["of-ben-01", "of-anna-2"]
        assert [records[1]["ranks"][k] for k in records[1]["order"]] == [3, 2, 1]
        assert store.records["skips"] == []
        desk = Desk(tasks_of(3), store, settings())
        assert (desk.next_task("anna")["done"], desk.next_task("anna")["left"]) == (1, 1)


def test_an_open_page_outlives_a_restart_with_another_seed(folder):
    tasks = tasks_of(1, k=6)
    with opened(folder) as store:
        shown = Desk(tasks, store, settings(["anna"], seed=0)).next_task("anna")["texts"]
        desk = Desk(tasks, store, settings(["anna"], seed=9))
        assert desk.next_task("anna")["texts"] == shown
        ranks = [*range(1, 7)]
        desk.submit("anna", {"id": "anna-0001", "task": tasks[0].id, "ranks": ranks,
                             "ratings": ranks, "flags": [[]] * 6})
        [r] = store.records["rankings"]
        assert dict(zip(r["responses"], r["ranks"])) == dict(zip(shown, ranks))


def test_one_id_is_one_text_of_one_labeler(folder):
    with opened(folder) as store:
        desk = Desk(tasks_of(1), store, settings(overlap=1.0))
        got = {name: desk.next_task(name) for name in ("anna", "ben")}
        for name in ("anna", "ben", "anna"):
            assert desk.submit(name, sent(got[name], "same-id-1"))["saved"] == "same-id-1"
        for change in ({"ranks": [1, 1, 1]}, {"skip": "no"}, {"note": "?"}):
            with pytest.raises(Refused, match="saved with other content"):
                desk.submit("anna", sent(got["anna"], "same-id-1") | change)
        assert [r["labeler"] for r in store.records["rankings"]] == ["anna", "ben"]
        assert desk.submit("anna", sent(got["anna"], "same-id-1", seconds=9))["saved"]


def test_ranks_are_kept_without_gaps(folder):
    with opened(folder) as store:
        desk = Desk(tasks_of(1), store, settings())
        desk.submit("anna", sent(desk.next_task("anna"), "anna-0001", ranks=[3, 1, 1]))
        [r] = store.records["rankings"]
        assert [r["ranks"][k] for k in r["order"]] == [2, 1, 1]


def test_gold_goes_to_everybody_and_looks_as_the_others(folder):
    gold = task_of("rank", {"prompt": [{"role": "user", "content": "G?"}], "responses": ["a", "b"],
                            "ranks": [1, 2]}, gold=True)
    with opened(folder) as store:
        desk = Desk([*tasks_of(1), gold], store, settings())
        seen = {}
        for name in ("anna", "ben"):
            for n in range(2):
                got = desk.next_task(name)
                if got["kind"] != "done":
                    seen.setdefault(name, []).append(got)
                    desk.submit(name, sent(got, f"{name}-{n:05}"))
        both = [got for of in seen.values() for got in of if got["task"] == gold.id]
        assert len(both) == 2 and all("gold" not in json.dumps(got) for got in both)
        assert [r["gold"] for r in store.records["rankings"]].count(True) == 2
        # whoever comes later gets it, too
        later = Desk([*tasks_of(1), gold], store, settings(["cara"])).next_task("cara")
        assert later["task"] == gold.id and later["left"] == 1


@pytest.mark.parametrize(("change", "says"), [
    ({"id": "short"}, "id: "), ({"id": "a b c d e f"}, "id: "), ({"id": 3}, "id: "),
    ({"task": "other"}, "no longer asked"), ({"ranks": [1, 2]}, "ranks: "),
    ({"ranks": [1, 2, 4]}, "ranks: "), ({"ranks": [1, 2, True]}, "ranks: "),
    ({"ranks": [1, None, 2]}, "every output has a rank"), ({"ratings": [1, 2, 8]}, "ratings: "),
    ({"ratings": None}, "ratings: "), ({"flags": [["x"], [], []]}, "flags: "),
    ({"flags": [[["x"]], [], []]}, "flags: "), ({"flags": [[]]}, "flags: "),
    ({"seconds": -1}, "seconds: "), ({"seconds": "1"}, "seconds: "),
    ({"seconds": math.nan}, "seconds: "), ({"note": "x" * 3000}, "note: "),
    ({"skip": ["x"]}, "skip: "),
])
def test_what_is_not_as_the_page_sends_it_is_refused_and_nothing_is_kept(folder, change, says):
    with opened(folder) as store:
        desk = Desk(tasks_of(1), store, settings())
        got = desk.next_task("anna")
        with pytest.raises(Refused, match=re.escape(says)):
            desk.submit("anna", sent(got, "abcdefgh") | change)
        assert not any(store.records.values())
        desk.submit("anna", sent(got, "abcdefgh"))
        with pytest.raises(Refused, match="done already"):
            desk.submit("anna", sent(got, "ijklmnop"))


@pytest.mark.parametrize(("vote", "ranks", "bad"), [
    ("left", [1, 2], False), ("right", [2, 1], False), ("tie", [1, 1], False),
    ("bad", [1, 1], True),
])
def test_votes_are_rankings_of_two(folder, vote, ranks, bad):
    tasks = [task_of("compare", {"prompt": [{"role": "user", "content": f"{n}?"}],
                                 "responses": ["x", "y"], "systems": ["sft", "ppo"]})
             for n in range(12)]
    with opened(folder) as store:
        desk = Desk(tasks, store, settings(["anna"]))
        for n in range(12):
            got = desk.next_task("anna")
            assert not re.search("sft|ppo|systems", json.dumps(got))      # it is blind
            desk.submit("anna", {"id": f"vote-{n:04}", "task": got["task"], "vote": vote})
        told = {"left": 12, "right": 12}.get(vote, 0)
        assert sum(desk.next_task("anna")["preferred"].values()) == told
        assert {*desk.next_task("anna")["preferred"]} == {"sft", "ppo"}
        swapped = [r["order"] == [1, 0] for r in store.records["votes"]]
        assert 1 < sum(swapped) < 11
        for r, turned in zip(store.records["votes"], swapped):
            assert r["ranks"] == (ranks[::-1] if turned else ranks) and r["both_bad"] is bad
    if vote in ("left", "right"):
        found = interop.load("rankings", (f"{folder}/votes.jsonl",), Counter(), flag="--data")
        assert len(found) == 12


def test_three_forms_of_demonstrations(folder):
    prompts = [[{"role": "user", "content": f"{n}?"}] for n in range(3)]
    tasks = [task_of("write", {"prompt": prompt, "use_case": "chat"}) for prompt in prompts]
    pairs = [{"query": f"q{n}", "response": f"r{n}"} for n in range(3)]
    with opened(folder) as store:
        desk = Desk(tasks, store, settings(["anna"]))
        forms = [{"form": "plain", "response": " Yes. "},
                 {"form": "user-based", "prompt": "Mine?", "response": "No."},
                 {"form": "few-shot", "instruction": "Do.", "pairs": pairs}]
        asked = []
        for n, form in enumerate(forms):
            got = desk.next_task("anna")
            asked.append(got["messages"][0]["content"])
            with pytest.raises(Refused, match="your answer is empty|answer 1 is empty"):
                empty = form | {"response": " ", "pairs": [{"query": "a", "response": " "}] * 2}
                desk.submit("anna", {"id": "wrong-one", "task": got["task"], **empty})
            desk.submit("anna", {"id": f"form-{n:04}", "task": got["task"], **form})
    found = interop.load("demonstrations", (f"{folder}/demonstrations.jsonl",), Counter(), flag="-")
    said = [[m["content"] for m in r.messages] for r in found]
    assert said[:2] == [[asked[0], "Yes."], ["Mine?", "No."]]
    assert said[2] == ["Do.\n\nq1\nr1\n\nq2\nr2\n\nq0", "r0"] and len(said) == 5
    assert {r.use_case for r in found} == {"chat"}


# ------------------------------------------------------------------------------------------------
# the report


def test_wilsons_interval_is_that_of_the_quadratic():
    """The shares p at which |p - good / n| is 1.96 standard errors of p."""
    for good, n in ((0, 10), (3, 10), (10, 10), (72, 100)):
        share, low, high = report.wilson(good, n)
        assert share == good / n
        for p in (low, high):
            assert (p - good / n) ** 2 == pytest.approx(1.96**2 * p * (1 - p) / n, abs=1e-12)
    assert math.isnan(report.wilson(0, 0)[0]) and report.wilson(0, 0)[1:] == (0, 1)


def test_krippendorffs_alpha_of_his_own_example():
    """Krippendorff 2011, "Computing Krippendorff's alpha-reliability": four observers, twelve
    units; alpha for intervals is 0.849."""
    given = """1 2 3 3 2 1 4 1 2 . . .
               1 2 3 3 2 2 4 1 2 5 . 3
               . 3 3 3 2 3 4 2 2 5 1 .
               1 2 3 3 2 4 4 1 2 5 1 ."""
    units = [[int(x) for x in unit if x != "."] for unit in zip(*map(str.split, given.split("\n")))]
    assert report.alpha(units) == pytest.approx(0.849, abs=0.0005)
    assert report.alpha([[1, 1], [2, 2], [3, 3]]) == 1
    assert math.isnan(report.alpha([[1, 1], [1, 1]])) and math.isnan(report.alpha([[1], [2]]))


def test_who_ranks_at_random_has_alpha_0_whatever_the_number_of_outputs():
    """Ranks themselves would not: a 9 is only given where there are nine."""
    rng = random.Random(0)
    for sizes in ((4,), (4, 5, 6, 7, 8, 9), (2, 9)):
        records = []
        for n in range(3000):
            k = rng.choice(sizes)
            for name in ("anna", "ben"):
                ranks = rng.sample(range(1, k + 1), k)
                records.append(ranked(str(n), name, ranks, responses=[*"abcdefghi"[:k]]))
        found = report.between_labelers(records)
        assert abs(found["alpha"]) < 0.02 and abs(found["agreement"] - 0.5) < 0.02
    assert report.places([1, 1, 3]) == report.places([1, 1, 2]) == [2 / 6, 2 / 6, 5 / 6]


def test_the_interval_of_pairs_that_go_together_holds_the_truth_as_often_as_it_says():
    """Two people who rank nine outputs by the same quality and noise of their own."""
    rng = np.random.default_rng(0)

    def counts(tasks):
        quality = rng.normal(size=(tasks, 1, 9))
        a, b = np.moveaxis(quality + 0.8 * rng.normal(size=(tasks, 2, 9)), 1, 0)
        i, j = np.triu_indices(9, 1)
        same = (a[:, i] > a[:, j]) == (b[:, i] > b[:, j])
        return [(int(good), 36) for good in same.sum(1)]

    truth = np.mean([good / 36 for good, _ in counts(20_000)])
    intervals = [report.share_of_pairs(counts(20))[1:] for _ in range(1000)]
    held = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.92 < held < 0.98
    # pairs one by one: their own interval; one task alone, or all alike: that of the tasks
    assert report.share_of_pairs([(1, 1)] * 30 + [(0, 1)] * 70) == pytest.approx(
        report.wilson(30, 100), abs=0.005)
    assert report.share_of_pairs([(36, 36)] * 8) == report.wilson(8, 8)
    assert report.share_of_pairs([(9, 36)]) == report.wilson(0.25, 1)


def ranked(task, labeler, ranks, order=None, **more):
    return {"prompt": [{"role": "user", "content": task}], "responses": [*"abc"][:len(ranks)],
            "ranks": ranks, "ratings": [None] * len(ranks), "labeler": labeler, "task": task,
            "order": order or list(range(len(ranks))), "seconds": 10, "use_case": "",
            "flags": [[]] * len(ranks), "gold": False} | more


def test_agreement_is_that_of_the_pairs_on_which_both_have_a_preference():
    records = [ranked("t", "anna", [1, 2, 3]), ranked("t", "ben", [1, 3, 2]),
               ranked("u", "anna", [1, 1, 2]), ranked("u", "ben", [2, 1, 3]),
               ranked("v", "anna", [1, 2])]
    found = report.between_labelers(records)
    # t: a>b, a>c agreed, b>c not; u: a>c and b>c agreed, a and b tie for one of them
    assert (found["agreement"], found["pairs"]) == (4 / 5, 5)
    alone = report.of_labeler(records[::2], {"t": {(0, 1), (2, 1)}})
    assert (alone["gold pairs"], alone["agrees with gold"]) == (2, 1 / 2)
    assert alone["ties"] == pytest.approx(1 / 9) and found["tasks"] == 2


def test_who_does_not_read_is_seen_without_gold():
    rng = random.Random(0)
    records = []
    for task in map(str, range(60)):
        truth = rng.sample([1, 2, 3], 3)
        records += [ranked(task, name, truth) for name in ("anna", "ben")]
        records.append(ranked(task, "carl", rng.sample([1, 2, 3], 3)))
    found = report.reliability(report.pair_votes(records))
    assert min(found["anna"], found["ben"]) > 0.97 and 0.35 < found["carl"] < 0.65


def test_who_prefers_what_comes_first_is_seen():
    """The order on the screen decides, not that in the file."""
    rng, records = random.Random(0), []
    for n in range(60):
        order = rng.sample(range(3), 3)
        ranks = [order.index(k) + 1 for k in range(3)]
        records.append(ranked(str(n), "anna", ranks, order))
    found = report.of_labeler(records, {})
    assert found["prefers what it saw first"] == 1 and found["first low"] > 0.9
    fair = [r | {"order": rng.sample(range(3), 3)} for r in records]
    found = report.of_labeler(fair, {})
    assert found["first low"] < 0.5 < found["first high"]


def test_votes_become_win_rates_and_ratings():
    def vote(systems, ranks, bad=False):
        return {"systems": systems, "ranks": ranks, "both_bad": bad}

    votes = [vote(["x", "y"], [1, 2])] * 6 + [vote(["y", "x"], [1, 2])] * 2
    votes += [vote(["x", "y"], [1, 1])] * 2 + [vote(["y", "x"], [1, 1], True)] * 2
    found = report.of_votes([*votes, vote(["x", "x"], [1, 2])])
    assert found["x"]["win rate"] == (6 + 2) / 12 and found["y"]["win rate"] == (2 + 2) / 12
    assert found["x"]["votes"] == 12 and found["x"]["both bad"] == 2
    assert found["x"]["rating"] > 0 > found["y"]["rating"]
    assert report.of_votes([]) == {}


def test_the_report_is_a_page_and_figures_and_marks_for_feedme(folder, tmp_path, capsys):
    tasks = tasks_of(6)
    gold = tmp_path / "gold.jsonl"
    write_jsonl(gold, [{"prompt": t.messages, "responses": t.texts, "ranks": [3, 2, 1]}
                       for t in tasks])
    with pytest.raises(ValueError, match="holds nothing that people did"):
        report.write(str(tmp_path), ())
    with opened(folder) as store:
        desk = Desk(tasks, store, settings(["anna", "ben"], overlap=1.0))
        for name, n in itertools.product(("anna", "ben"), range(6)):
            got = desk.next_task(name)
            up = sorted(got["texts"])
            desk.submit(name, sent(got, f"{name}-{n:04}", flags=[["opinion"], [], []],
                                   ranks=[1 + up.index(x) for x in got["texts"]]))
    figures = report.write(folder, (str(gold),))
    assert figures["between labelers"]["agreement"] == 1 == figures["between labelers"]["alpha"]
    assert figures["labelers"]["ben"]["agrees with gold"] == 0
    # of 18 pairs on which both say the same, and one right and one wrong more
    assert figures["labelers"]["ben"]["reliability"] == pytest.approx(19 / 20, abs=0.01)
    said = capsys.readouterr().out
    assert "| anna | 6 | 0 | 0 | 0 | 3 | 0 % |" in said and "below 75 %" in said
    assert "6 tasks were done by more than one" in said
    assert "36 outputs were marked, 6.0 of 7 on average; flags: opinion 33 %." in said
    with open(f"{folder}/report.json") as f:
        assert json.load(f) == json.loads(json.dumps(figures))
    counts = Counter()
    demos = interop.load("demonstrations", (f"{folder}/ratings.jsonl",), counts, flag="--rated")
    assert counts["samples rated 7 of 7"] == len(demos) == 12


def test_the_rubrics_agreement_is_with_its_own_order():
    texts = ["Yes.", "I do not know.", "The the."]
    records, keys, again = [], [], []
    for prompt in KEYED:
        score = [sandbox.judge(prompt, text).score for text in texts]
        ranks = [1 + sum(other > own for other in score) for own in score]
        records.append({"prompt": prompt.messages, "responses": texts, "ranks": ranks})
        again.append(records[-1] | {"ranks": [4 - rank for rank in ranks]})
        keys.append(prompt.meta)
    assert report.rubric_agreement(records, keys)[0] == 1
    share, pairs = report.rubric_agreement(again, keys)
    assert share == 0 and pairs > 40


def test_tasks_of_another_file_are_not_counted_as_the_rubrics(folder):
    """The folder holds what was ranked before; the agreement is over tasks with a key."""
    keyed = [task_of("rank", {"prompt": p.messages, "responses": ["Yes.", "I do not know."],
                              "meta": p.meta}) for p in KEYED]
    with opened(folder) as store:
        for n, tasks in enumerate((tasks_of(3), keyed)):
            desk = Desk(tasks, store, settings(["anna"]))
            said = []
            for k in range(3 if n == 0 else 10):
                said.append(desk.submit("anna", sent(desk.next_task("anna"), f"s-{n}-{k:05}")))
        own = [r for r in store.records["rankings"] if r["task"] in desk.tasks]
        keys = [desk.tasks[r["task"]].more["meta"] for r in own]
    assert ["rubric" in x for x in said] == [False] * 9 + [True]
    assert (said[-1]["rubric"], said[-1]["pairs"]) == report.rubric_agreement(own, keys)
