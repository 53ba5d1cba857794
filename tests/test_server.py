"""people/server.py and page.py: what is let in, what is refused, kills, many at once, and the whole
way from a labeler's clicks to a reward model."""

import http.client
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import interop
import page
import sandbox
from interop.tokenizers import tokenizer_id
from model import GPT, GPTConfig
from people.desk import Desk, task_of
from people.server import LARGEST, Server, tokens_of
from people.store import Store
from plumbing.files import save_checkpoint
from plumbing.results import write_jsonl

LABELERS = ("anna", "ben")
EVIL = "<img src=x onerror=alert(1)></script><script>alert(2)</script>\u202e\x00 & \"'"


def tasks_of(n, k=3):
    return [{"prompt": f"{i}?", "responses": [f"{i} {x} {EVIL}" for x in "abcdefghi"[:k]]}
            for i in range(n)]


@pytest.fixture
def serve(tmp_path):
    """Serve in this process -> (port, {labeler: token}, store)"""
    started = []

    def start(tasks, talk=None, systems_at=None, labelers=LABELERS):
        cfg = SimpleNamespace(labelers=labelers, overlap=0.0, seed=0)
        store, tokens = Store(str(tmp_path / "human")), tokens_of(str(tmp_path), labelers)
        desk = Desk(tasks, store, cfg, systems_at)
        server = Server(desk, tokens, {"instructions": "Do."}, "127.0.0.1", 0, talk)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append((server, store))
        return server.server_address[1], {name: token for token, name in tokens.items()}, store

    yield start
    for server, store in started:
        server.shutdown()
        server.server_close()
        for file in (*store.files.values(), store.lock):
            os.close(file)


@pytest.fixture
def served(serve):
    return serve([task_of("rank", r | {"prompt": [{"role": "user", "content": r["prompt"]}]})
                  for r in tasks_of(20)])


def request(port, method, path, body=None, timeout=20, **headers):
    """-> (status, headers, text)"""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


def get(port, token, path="/task"):
    return json.loads(request(port, "GET", path, X_Token=token)[2])


def post(port, token, sent, path="/submit", **headers):
    headers = {"X_Token": token, "Content_Type": "application/json"} | headers
    status, _, text = request(port, "POST", path, json.dumps(sent), **headers)
    return status, json.loads(text)


def ranking(task, name):
    K = len(task["texts"])
    return {"id": name, "task": task["task"], "ranks": [*range(1, K + 1)], "ratings": [4] * K,
            "flags": [[]] * K, "seconds": 1}


def raw(port, text, wait=5):
    """What comes back for bytes that no client library sends."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as s:
        s.sendall(text)
        return s.recv(1000).decode()


# ------------------------------------------------------------------------------------------------
# what is let in


def test_a_labeler_gets_a_task_and_what_they_send_is_saved(served):
    port, tokens, store = served
    task = get(port, tokens["anna"])
    assert task["kind"] == "rank" and task["instructions"] == "Do." and EVIL in task["texts"][0]
    assert post(port, tokens["anna"], ranking(task, "once-only")) == (200, {"saved": "once-only"})
    assert post(port, tokens["anna"], ranking(task, "once-only")) == (200, {"saved": "once-only"})
    assert post(port, tokens["anna"], ranking(task, "twice-now"))[0] == 409
    assert [r["labeler"] for r in store.records["rankings"]] == ["anna"]
    assert get(port, tokens["anna"])["task"] != task["task"]


def test_the_page_holds_no_data_and_runs_no_code_but_its_own(served):
    port, tokens, _ = served
    pages = []
    for _ in range(2):
        status, headers, text = request(port, "GET", "/")
        [nonce] = set(re.findall(r'nonce="([^"]+)"', text))
        policy = headers["Content-Security-Policy"]
        assert status == 200 and "default-src 'none'" in policy
        assert f"script-src 'nonce-{nonce}'" in policy
        assert "unsafe" not in policy and headers["X-Content-Type-Options"] == "nosniff"
        assert not any(token in text for token in tokens.values()) and "http://" not in text
        assert not re.search(r"\son\w+=|innerHTML|document\.write|eval\(", text)
        pages.append(nonce)
    assert pages[0] != pages[1]


@pytest.mark.parametrize(("headers", "status"), [
    ({"Host": "evil.example"}, 421), ({"Host": "evil.example:80"}, 421), ({"Host": ""}, 421),
    ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403),
    ({"Origin": "https://127.0.0.1"}, 403), ({"Sec-Fetch-Site": "cross-site"}, 403),
    ({"Sec-Fetch-Site": "same-site"}, 403), ({"X-Token": ""}, 403), ({"X-Token": "x"}, 403),
    ({"X-Token": "ä"}, 403), ({"Content-Type": "text/plain"}, 415),
    ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ({"Content-Type": "multipart/form-data; boundary=x"}, 415), ({"Content-Length": "-1"}, 411),
    ({"Content-Length": "2000000000"}, 413), ({"Content-Length": "9" * 5000}, 413),
    ({"Content-Length": str(LARGEST + 1)}, 413),
])
def test_who_is_not_the_page_is_refused_and_nothing_is_kept(served, headers, status):
    port, tokens, store = served
    body = json.dumps(ranking(get(port, tokens["anna"]), "abcdefgh"))
    usual = {"Host": f"127.0.0.1:{port}", "X-Token": tokens["anna"],
             "Content-Type": "application/json", "Content-Length": str(len(body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in (usual | headers).items())
    said = raw(port, f"POST /submit HTTP/1.1\r\n{lines}\r\n{body}".encode())
    assert said.startswith(f"HTTP/1.0 {status} ") and not any(store.records.values())
    if status in (403, 421):
        said = raw(port, f"GET /task HTTP/1.1\r\n{lines}\r\n".encode())
        assert said.startswith(f"HTTP/1.0 {status} ")


def test_a_link_may_be_followed_from_a_mail_and_through_a_forwarded_port(served):
    """The page itself holds nothing; its own requests come from the host that it came from."""
    port, tokens, _ = served
    for host in ("localhost", "127.0.0.1:9000", "[::1]:80", f"localhost:{port}"):
        status, _, _ = request(port, "GET", "/", Host=host, Sec_Fetch_Site="cross-site")
        assert status == 200
        status, _, _ = request(port, "GET", "/task", Host=host, Origin=f"http://{host}",
                               Sec_Fetch_Site="same-origin", X_Token=tokens["anna"])
        assert status == 200
    for host in ("localhost.evil.example", "localhost:80.evil.example", "evil.example:80"):
        assert request(port, "GET", "/", Host=host)[0] == 421


@pytest.mark.parametrize("content", [
    "[]", "5", '{"me": 5}', '{"me": ""}', '{"me": null}', "{", json.dumps({"a": "x" * 20,
                                                                          "b": "x" * 20})])
def test_links_that_were_mended_by_hand_are_looked_at(tmp_path, content):
    (tmp_path / "tokens.json").write_text(content)
    with pytest.raises(ValueError, match="tokens.json"):
        tokens_of(str(tmp_path), ["me"])


def test_a_form_of_another_site_needs_a_preflight_which_nobody_answers(served):
    status, headers, _ = request(served[0], "OPTIONS", "/submit", Origin="http://evil.example")
    assert status == 501 and "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize("path", [
    "/../../etc/passwd", "//etc/passwd", "/%2e%2e/", "/tokens.json", "/rankings.jsonl",
    "/page.html", "/task/", "/?x", "http://127.0.0.1/", "/\x00",
])
def test_nothing_is_served_from_the_disk(served, path):
    port, tokens, _ = served
    head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nX-Token: {tokens['anna']}\r\n\r\n"
    assert re.match("HTTP/1.0 40[04] ", raw(port, head.encode()))


@pytest.mark.parametrize("body", [
    "[" * 200_000, '{"a":' * 100_000, "{", "[]", "3", '"x"', "NaN", "\x00", '{"id": "abcdefgh"}',
    '{"id": "abcdefgh", "note": ["\\ud800"]}', '{"\\udfff": 1}',
])
def test_a_body_that_is_no_object_of_ours_is_refused(served, body):
    port, tokens, store = served
    status, _, text = request(port, "POST", "/submit", body, X_Token=tokens["anna"],
                              Content_Type="application/json")
    assert status in (400, 404) and json.loads(text)["error"] and not any(store.records.values())


def test_an_error_of_the_servers_is_an_answer(served, monkeypatch, capsys):
    monkeypatch.setattr(Desk, "next_task", lambda *_: 1 / 0)
    port, tokens, _ = served
    status, _, text = request(port, "GET", "/task", X_Token=tokens["anna"])
    assert status == 500 and "which its terminal shows" in json.loads(text)["error"]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_what_was_sent_can_be_taken_back(served):
    port, tokens, store = served
    task = get(port, tokens["anna"])
    post(port, tokens["anna"], ranking(task, "to-be-undone"))
    for name, left in (("ben", 1), ("anna", 0), ("anna", 0)):
        assert post(port, tokens[name], {"id": "to-be-undone"}, "/undo")[0] == 200
        assert len(store.records["rankings"]) == left
    assert get(port, tokens["anna"]) == task


def test_own_tasks_may_carry_what_they_like(serve):
    """Ten rankings of tasks with a "meta" that is no key of the sandbox's."""
    port, tokens, _ = serve([
        task_of("rank", {"prompt": [{"role": "user", "content": f"{n}?"}], "responses": ["a", "b"],
                         "meta": meta}) for n, meta in enumerate(({"x": 1}, "key", [1]) * 4)])
    for n in range(10):
        said = post(port, tokens["anna"], ranking(get(port, tokens["anna"]), f"own-{n:04}"))
        assert said == (200, {"saved": f"own-{n:04}"})


def test_who_is_slow_keeps_nobody_waiting_and_does_not_stay(served, monkeypatch):
    """A byte a second, of the head and of the body."""
    monkeypatch.setattr("people.server.LONG", 1)
    port, tokens, _ = served
    head = (f"POST /submit HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nX-Token: {tokens['ben']}\r\n"
            f"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n").encode()
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
    for n, s in enumerate(slow):
        s.sendall(head if n % 2 else b"GET /ta")
    began = time.monotonic()
    assert get(port, tokens["anna"])["kind"] == "rank" and time.monotonic() - began < 2
    body = slow[1]
    for _ in range(6):
        time.sleep(0.5)
        try:
            body.sendall(b"x")
        except OSError:
            break
    body.settimeout(5)
    assert b" 408 " in body.recv(1000)
    for s in slow:
        s.close()


# ------------------------------------------------------------------------------------------------
# the command, killed and started again


@pytest.fixture
def command(root, tmp_path):
    """Start page.py -> (process, port, {labeler: token})."""
    started = []

    def start(*argv, labelers=LABELERS, out="human", port=0):
        process = subprocess.Popen(
            [sys.executable, "page.py", *argv, "--out", str(tmp_path / out), "--port", str(port),
             "--labelers", *labelers], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
            # Ctrl-C ends it, also if the tests run in the background
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # noqa: PLW1509
        started.append(process)
        said = ""
        for line in process.stdout:
            said += line
            if "Ctrl-C ends it" in line:
                break
        links = dict(re.findall(r"^(\w+): http://127.0.0.1:\d+/#(\S+)$", said, re.MULTILINE))
        assert links.keys() == set(labelers), said
        return process, int(re.search(r"127.0.0.1:(\d+)/", said)[1]), links

    yield start
    for process in started:
        process.kill()
        process.wait()


def client(name, state, stop):
    """A labeler who ranks and sends again until it is saved, whatever happens to the server."""
    n = 0
    while not stop.is_set():
        try:
            task = get(state["port"], state["tokens"][name])
            if task["kind"] == "done":
                return
            mine = ranking(task, f"{name}-{n:06}")
            status, _ = post(state["port"], state["tokens"][name], mine)
            if status == 200:
                state["saved"].append((name, mine["id"], task["task"]))
                n += 1
        except (OSError, http.client.HTTPException, ValueError):
            time.sleep(0.02)


def test_whenever_it_is_killed_what_was_saved_is_there_once(command, tmp_path):
    """Four clients; KILLS times SIGKILL at a random moment, and started again."""
    labelers, kills = ("a", "b", "c", "d"), 4 * int(os.environ.get("KILLS", "1"))
    path, rng, stop = str(tmp_path / "tasks.jsonl"), random.Random(0), threading.Event()
    write_jsonl(path, tasks_of(2000))
    process, port, tokens = command("rank", path, labelers=labelers)
    state = {"port": port, "tokens": tokens, "saved": []}
    clients = [threading.Thread(target=client, args=(name, state, stop)) for name in labelers]
    for c in clients:
        c.start()
    for _ in range(kills):
        time.sleep(rng.uniform(0.1, 0.8))
        process.kill()
        process.wait()
        process, state["port"], again = command("rank", path, labelers=labelers)
        assert again == tokens                              # the links that people have still work
    time.sleep(0.5)
    stop.set()
    for c in clients:
        c.join()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    with open(tmp_path / "human" / "rankings.jsonl", encoding="utf-8") as f:
        lines = [json.loads(line) for line in f]
    ids = Counter(r["id"] for r in lines)
    assert len(state["saved"]) > 60 and {name for _, name, _ in state["saved"]} <= ids.keys()
    assert set(ids.values()) == {1}
    assert max(Counter((r["labeler"], r["task"]) for r in lines).values()) == 1


@pytest.mark.parametrize(("argv", "change", "says"), [
    ((), {}, r"say what people are to do: python page.py rank \| write"),
    (("rate",), {}, "say what people"), (("rank",), {}, "name the tasks to rank: `python label.py"),
    (("compare", "one.pt"), {}, "name two"), (("chat",), {}, "name the model to chat with"),
    (("rank", "none.jsonl"), {}, "none.jsonl does not exist"),
    (("rank", "t"), {"labelers": ("a", "a")}, "--labelers: each has a name"),
    (("rank", "t"), {"overlap": 2.0}, "--overlap"), (("report",), {}, "holds nothing that people"),
    (("rank", "t"), {"instructions": "none.txt"}, "none.txt does not exist"),
    (("report", "mine"), {}, "reads the folder --out, not mine"),
    (("rank", "t"), {"out": ""}, "--out and --host"), (("rank", "t"), {"host": ""}, "--out and"),
    (("rank", "t"), {"out": "t"}, "--out t: File exists; choose another folder"),
    (("rank", "t"), {"out": "t/x"}, "--out t/x: Not a directory"),
    (("rank", "t"), {"gold": ("t",)}, "t"), (("rank", "t"), {"host": "no.such.host"}, "--host no"),
])
def test_what_cannot_be_is_a_sentence(tmp_path, monkeypatch, argv, change, says):
    monkeypatch.chdir(tmp_path)
    write_jsonl(str(tmp_path / "t"), tasks_of(2))
    with pytest.raises(ValueError, match=says):
        page.main(page.Config(what=argv, **change))


# ------------------------------------------------------------------------------------------------
# models


def tiny(path, seed=0):
    torch.manual_seed(seed)
    enc = interop.get_tokenizer("sandbox")
    model = GPT(GPTConfig(enc.n_vocab, 160, 1, 2, 16))
    torch.nn.init.normal_(model.wpe.weight, 0.0, 1.0)
    save_checkpoint(str(path), model, tokenizer_id(enc), {"stage": "sft"})
    return str(path)


def test_two_models_are_compared_blindly_and_sampled_once(tmp_path):
    systems = [tiny(tmp_path / f"{name}.pt", seed) for seed, name in enumerate(("sft", "ppo"))]
    cfg = page.Config(out=str(tmp_path / "human"), n=12, max_new=4)
    os.makedirs(cfg.out)
    tasks = page.compare_tasks(cfg, systems)
    assert len(tasks) > 8 and all(sorted(t.more["systems"]) == ["ppo", "sft"] for t in tasks)
    assert {t.more["systems"][0] for t in tasks} == {"sft", "ppo"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page.answers, "respond", None)
        assert page.compare_tasks(cfg, systems) == tasks
        # others may come, elsewhere
        other = replace(cfg, labelers=("x", "y"), port=1, host="localhost", overlap=1.0)
        assert page.compare_tasks(other, systems) == tasks
    with pytest.raises(ValueError, match="name two systems"):
        page.compare_tasks(cfg, systems[:1])
    with pytest.raises(ValueError, match="all answers are alike"):
        same = [systems[0], tiny(tmp_path / "same.pt", 0)]
        page.compare_tasks(replace(cfg, out=str(tmp_path), n=2, temperature=0.0), same)
    (tmp_path / "human" / "votes.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"votes.jsonl holds votes on the answers"):
        page.compare_tasks(replace(cfg, overwrite=True), systems)


def test_a_chat_grows_token_by_token_and_a_preference_is_a_comparison(serve, tmp_path):
    systems = [tiny(tmp_path / f"{name}.pt", seed) for seed, name in enumerate(("sft", "ppo"))]
    with pytest.raises(ValueError, match="--max-new 160 leaves no room"):
        page.talker(page.Config(max_new=160), systems)
    talk, systems_at = page.talker(page.Config(max_new=12), systems)
    # up to the last token of the context, in steps that do not divide it
    whole = [{"role": "user", "content": "Anna sells. " * 100}]
    full, _ = page.talker(page.Config(max_new=10), systems)
    assert len(list(full({"messages": whole, "side": 0, "turn": "1"}))) <= 3
    port, tokens, _ = serve([], talk, systems_at)
    asked = [{"role": "user", "content": "Hi."}]
    answers = []
    for side in (0, 1):
        sent = {"messages": asked, "side": side, "turn": "1 1"}
        status, _, text = request(port, "POST", "/chat", json.dumps(sent), X_Token=tokens["anna"],
                                  Content_Type="application/json")
        *grown, end = map(json.loads, text.splitlines())
        grown = [found["text"] for found in grown]
        assert status == 200 and end == {"done": True} and 1 <= len(grown) <= 3
        assert all(b.startswith(a.rstrip("\ufffd")) for a, b in itertools.pairwise(grown))
        answers.append(grown[-1])
    vote = {"id": "chat-vote", "task": "chat", "messages": asked, "texts": answers, "turn": "1 1",
            "vote": "left"}
    assert post(port, tokens["anna"], vote) == (200, {"saved": "chat-vote"})
    for odd in ({"messages": []}, {"messages": asked, "turn": 1}, {"messages": asked}):
        assert post(port, tokens["anna"], odd, "/chat")[0] == 400
    assert post(port, tokens["anna"], vote | {"id": "same-twice", "texts": ["x", "x"]})[0] == 400
    # the same said again is another vote; what is sent again is not
    assert post(port, tokens["anna"], vote)[0] == 200
    assert post(port, tokens["anna"], vote | {"id": "chat-vote-2"})[0] == 200
    [kept, _] = map(json.loads, (tmp_path / "human" / "votes.jsonl").read_text().splitlines())
    assert kept["responses"] == answers and kept["ranks"] == [1, 2]
    assert sorted(kept["systems"]) == ["ppo", "sft"]


def test_the_circle_is_closed(serve, tmp_path):
    """A labeler who reads by the rubric ranks the sandbox's tasks through HTTP: what is in the file
    are the rubric's own rankings of these tasks."""
    prompts, rng = sandbox.prompts(30, 5), random.Random(0)
    pool = ["Yes.", "I do not know.", "Paris.", "Of course, happily.", "The the the."]
    tasks = [{"prompt": p.messages, "use_case": p.use_case, "meta": p.meta,
              "responses": rng.sample([*pool, p.meta["answers"][0]], 4)} for p in prompts]
    write_jsonl(str(tmp_path / "tasks.jsonl"), tasks)
    by_prompt = {json.dumps(p.messages): p for p in prompts}
    port, tokens, _ = serve(page.rank_tasks(page.Config(), (str(tmp_path / "tasks.jsonl"),)))
    for n in range(len(by_prompt)):
        task = get(port, tokens["anna"])
        p = by_prompt[json.dumps(task["messages"])]
        score = [sandbox.judge(p, text).score for text in task["texts"]]
        ranks = [1 + sum(other > own for other in score) for own in score]
        status, said = post(port, tokens["anna"], ranking(task, f"r-{n:06}") | {"ranks": ranks})
        assert status == 200 and said.get("rubric", 1) == 1 and ("rubric" in said) == (n % 10 == 9)
    found = interop.load("rankings", (str(tmp_path / "human/rankings.jsonl"),), Counter(), flag="-")
    for r in found:
        p = by_prompt[json.dumps(r.messages)]
        score = [sandbox.judge(p, text).score for text in r.responses]
        assert set(r.pairs) == {(i, j) for i in range(4) for j in range(4) if score[i] > score[j]}
    assert len(found) > 20
    assert get(port, tokens["anna"])["kind"] == "done"
