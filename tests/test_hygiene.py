"""interop/hygiene.py: what is kept, against brute force; personal.py: what is found, what not."""

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict

import pytest

from interop import hygiene, load, personal
from plumbing import cli

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SIDES = ("train", "valid", "test")


def put(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def run(tmp_path, rows, out="out", **settings):
    """-> {side: prompts}, of one message each, and the report"""
    path = put(tmp_path / f"{out}.jsonl", rows)
    settings = {"user": "user"} | settings
    hygiene.main(hygiene.Config(files=(path,), out=str(tmp_path / out), **settings))
    return read(tmp_path / out)


def read(folder):
    found = {}
    for name in SIDES:
        text = (folder / f"{name}.jsonl").read_text()
        found[name] = [json.loads(line)["prompt"][-1]["content"] for line in text.splitlines()]
    return found, (folder / "report.md").read_text()


def everything(found):
    return sorted(text for texts in found.values() for text in texts)


# ---- copies -------------------------------------------------------------------------------------


def common(a, b):
    return len(os.path.commonprefix([a, b]))


@pytest.mark.parametrize("seed", range(6))
def test_no_two_that_are_kept_are_alike_and_what_goes_is_like_one(seed, monkeypatch):
    """Against all pairs. With 4 characters instead of 64 short strings of few letters are alike
    often, and in every way: the shorter first or last, neighbours or far apart."""
    monkeypatch.setattr(hygiene, "PREFIX", 4)
    rng = random.Random(seed)
    texts = {"".join(rng.choices("ab" + "c" * (seed % 2), k=rng.randint(1, 30)))
             for _ in range(400)}  # fmt: skip
    for text in list(texts):  # and some that go on where others end
        texts.add(text + "".join(rng.choices("ab", k=rng.randint(1, 8))))
    gone = defaultdict(list)
    rows = sorted((text, json.dumps({"prompt": text}), "") for text in texts)
    kept = [row[0] for row in hygiene.without_copies(rows, gone)]

    def too_alike(a, b):
        return common(a, b) >= max(4, 0.8 * min(len(a), len(b)))

    assert not [(a, b) for a in kept for b in kept if a < b and too_alike(a, b)]
    assert gone.keys() == {"prefix"} and len(gone["prefix"]) + len(kept) == len(texts)
    for (text, _, _), (instead, _, _) in gone["prefix"]:
        assert instead in kept and too_alike(text, instead)
    assert 20 < len(kept) < len(texts) - 20


@pytest.mark.parametrize(
    ("length", "shared", "alike"),
    [(100, 80, True), (100, 79, False), (70, 63, False), (70, 64, True), (64, 64, True),
     (63, 63, False), (101, 81, True), (101, 80, False)],
)  # fmt: skip
def test_the_bound_is_64_characters_and_80_percent_of_the_shorter(length, shared, alike):
    a, b = "x" * length, "x" * shared + "y" * 400
    assert hygiene.alike(a, b) == hygiene.alike(b, a) == alike


def test_copies_go_whatever_their_case_spaces_and_forms(tmp_path):
    texts = ["Hello  there", "hello there", "Hello  there", "ＨＥＬＬＯ\nthere "]
    texts += ["Straße", "STRASSE", "Hello, there"]
    rows = [{"prompt": t, "user": str(i)} for i, t in enumerate(texts)]
    found, report = run(tmp_path, rows)
    assert len(everything(found)) == 3
    assert "Exact copies: 1\n" in report and "case and spaces: 3\n" in report


def test_what_is_kept_does_not_hang_on_the_order_of_the_file(tmp_path):
    rng = random.Random(0)
    begin = "Write a story about a very small dragon who lives in a house of glass and "
    rows = [{"prompt": rng.choice([begin, begin.upper(), "Tell "]) + rng.choice("abc") * n,
             "user": rng.choice("xyz")} for n in range(1, 20) for _ in range(9)]  # fmt: skip
    first = run(tmp_path, rows, "0", per_user=7)
    for n in range(1, 5):
        rng.shuffle(rows)
        assert run(tmp_path, rows, str(n), per_user=7) == first


def test_of_dialogues_all_turns_are_compared(tmp_path):
    def dialogue(*texts):
        roles = ["system", "user", "assistant", "user"]
        return [{"role": r, "content": t} for r, t in zip(roles, texts)]

    one = dialogue("Be kind.", "Hi", "Hello", "Who are you?")
    other = dialogue("Be kind.", "Hi", "Good day", "Who are you?")
    again = dialogue("be kind.", "hi", "Hello ", "who are  you?")
    first = dialogue("Be kind. " * 20, "Hi")
    later = [*first, *dialogue("", "", "Hello", "And you?")[2:]]
    rows = [{"messages": m, "user": "a"} for m in (one, other, again, first, later)]
    path = put(tmp_path / "in.jsonl", rows)
    hygiene.main(hygiene.Config((path,), "user", str(tmp_path / "out"), valid=0, test=0))
    kept = load("prompts", (str(tmp_path / "out/train.jsonl"),), Counter(), flag="")
    replies = [m["content"] for p in kept for m in p.messages if m["role"] == "assistant"]
    assert len(kept) == 4 and sorted(replies) == ["Good day", "Hello", "Hello"]


# ---- users --------------------------------------------------------------------------------------


def sent(users, each):
    return [{"prompt": f"{i} of {u}", "user": u} for u in users for i in range(each)]


def owner(text):
    return text.split(" of ")[1]


def test_no_user_is_on_two_sides_and_shares_are_those_asked_for(tmp_path):
    found, _ = run(tmp_path, sent(range(3000), 2), valid=0.1, test=0.2)
    users = {name: {owner(text) for text in texts} for name, texts in found.items()}
    assert sum(map(len, users.values())) == len(set.union(*users.values())) == 3000
    # 4 standard deviations: sqrt(3000 0.2 0.8) is 22
    assert abs(len(users["valid"]) - 300) < 66 and abs(len(users["test"]) - 600) < 88


@pytest.mark.parametrize("user", ["user", ""])
def test_more_data_and_another_share_move_nobody(tmp_path, user):
    few, _ = run(tmp_path, sent(range(400), 1), "few", user=user)
    rows = sent(range(900), 3)
    random.Random(1).shuffle(rows)
    many, _ = run(tmp_path, rows, "many", user=user)
    assert all(set(few[name]) <= set(many[name]) for name in SIDES)
    more, _ = run(tmp_path, rows, "more", user=user, valid=0.2)
    assert more["test"] == many["test"] and set(many["valid"]) < set(more["valid"])


def test_at_most_so_many_of_a_user_and_not_the_first(tmp_path):
    rows = sent(["a"], 50) + sent(["b"], 7)
    found, report = run(tmp_path, rows, per_user=10)
    of = Counter(owner(text) for text in everything(found))
    assert of == {"a": 10, "b": 7} and "than --per-user: 40\n" in report
    numbers = {int(t.split()[0]) for t in everything(found) if owner(t) == "a"}
    assert numbers != set(range(10)) and max(numbers) > 25
    everybody, _ = run(tmp_path, rows, "nobody", user="", per_user=10)
    assert len(everything(everybody)) == 57


def test_training_holds_out_of_what_is_written_as_much_as_of_anything(tmp_path):
    """If both drew by one hash, all that training would hold out would be gone."""
    from interop import split
    run(tmp_path, [{"prompt": f"What is {i}?"} for i in range(2000)], user="", valid=0.2)
    prompts = load("prompts", (str(tmp_path / "out/train.jsonl"),), Counter(), flag="")
    _, held_out = split(prompts, 0.1)
    assert 0.07 < len(held_out) / len(prompts) < 0.13


# ---- personal data ------------------------------------------------------------------------------


def test_luhn_finds_each_wrong_digit_and_most_swaps():
    """Of the ten last digits one is right; one wrong digit is found, and two that changed places
    but for 0 and 9."""
    for body in ("411111111111111", "37828224631000", "123456", "0"):
        assert sum(personal.luhn(body + d) for d in "0123456789") == 1
    number = "4539 1488 0343 6467"  # whose sum is 80
    assert personal.luhn(number)
    digits = number.replace(" ", "")
    for i, d in enumerate(digits):
        for other in set("0123456789") - {d}:
            assert not personal.luhn(digits[:i] + other + digits[i + 1 :])
        swapped = digits[:i] + digits[i + 1 : i + 2] + d + digits[i + 2 :]
        pair = {d, digits[i + 1 : i + 2] or d}
        assert personal.luhn(swapped) == (len(pair) == 1 or pair == {"0", "9"})


def test_mod_97_has_one_pair_of_check_digits():
    """For the registry's own examples, and of 02 to 98 only theirs."""
    for iban in ("DE89370400440532013000", "GB29NWBK60161331926819", "NO9386011117947",
                 "FR1420041010050500013M02606", "MT84MALT011000012345MTLCAST001S"):  # fmt: skip
        right = [n for n in range(2, 99) if personal.mod_97(f"{iban[:2]}{n:02}{iban[4:]}")]
        assert right == [int(iban[2:4])]


FOUND = [
    ("write to Jo.Do+x@mail.uni.co.uk now", "write to [EMAIL] now"),
    ("A@B.DE, xa@b.de", "[EMAIL], [EMAIL]"),
    ("call +49 171 1234567.", "call [PHONE]."),
    ("tel:+4917112345678", "tel:[PHONE]"),
    ("(415) 555-2671 or 415-555-2671", "[PHONE] or [PHONE]"),
    ("415 555 2671 please", "[PHONE] please"),
    ("+1-202-555-0173", "[PHONE]"),
    ("06 12 34 56 78", "[PHONE]"),
    ("Tel. 030/1234567, 0049 171 1234567", "Tel. [PHONE], [PHONE]"),
    ("+44 (0)20 7946 0958", "[PHONE]"),
    ("4111 1111 1111 1111 07/29", "[CARD] 07/29"),
    ("378282246310005", "[CARD]"),
    ("3782 822463 10005", "[CARD]"),
    ("DE89 3704 0044 0532 0130 00 AND MORE", "[IBAN] AND MORE"),
    ("GB82WEST12345698765432.", "[IBAN]."),
    ("ping 192.168.1.1, 91.134.12.200!", "ping 192.168.1.1, [IP]!"),
    ("2a00:1450:4001:81b::200e", "[IP]"),
    ("key=sk-abc123def456ghi789jkl", "key=[KEY]"),
    ("ghp_" + "a1" * 18, "[KEY]"),
    ("AKIA1234567890ABCDEF", "[KEY]"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\nx", "[KEY]\nx"),
    ("-----BEGIN PRIVATE KEY-----\nMII", "[KEY]"),
]
NOT_FOUND = [
    "user@localhost", "x @ w.T", "x@w.transpose(0)", "john@example.com", "@app.route('/')",
    "git@github.com:a/b.git", "2024-01-15 12:30:45", "01.02.2003 - 03.04.2005", "01-02-2003 1200",
    "1700000000000", "1700000000.123456", "978-3-16-148410-0", "ISBN 0-306-40615-2",
    "192.168.1.1", "127.0.0.1", "255.255.255.0", "1.2.3.4", "8.8.8.8", "v10.15.7.2",
    "version 12.0.3.1", "224.0.0.251", "999.10.10.10", "x[1::2]", "std::vector", "12:30:45",
    "2001:db8::1", "fe80::1", "00:1B:44:11:3A:B7", "3.14159265358979", "+3.14159265358",
    "1234567890", "123 456 789 + 5", "1,234,567,890", "0101 0101 0101",
    "030/12345, in 1999", "2^31 = 2147483648",
    "f(123456789, 987654321)", "1 2 3 4 5 6 7 8 9 10", "10 20 30 40 50 60", "100 200 300 400 5000",
    "4111 1111 1111 1112", "9111 1111 1111 1118", "550e8400-e29b-41d4-a716-446655440000",
    "DE89 3704 0044 0532 0130 01", "DE893704004405320130", "1-800-555-1234",
    "sk-learn-something-with-a-long-name", "AKIAIOSFODNN7EXAMPLE", "0x1F600 0xDEADBEEF",
    "-----BEGIN PUBLIC KEY-----", "(888) 736-9466", "1990-2000, 2001-2010",
    "task-0123456789012345678901",
]  # fmt: skip


@pytest.mark.parametrize(("text", "masked"), FOUND, ids=range(len(FOUND)))
def test_personal_data_is_found(text, masked):
    found, names = personal.mask(text)
    assert found == masked and names == set(re.findall(r"\[([A-Z]+)\]", masked))


@pytest.mark.parametrize("text", NOT_FOUND, ids=range(len(NOT_FOUND)))
def test_what_only_looks_like_it_is_left(text):
    assert personal.mask(text) == (text, set())


@pytest.mark.parametrize("piece", ["a", "1 ", "a.b-", "0 1", "+1", "2001:", "DE89 ", "A1", "x@y."])
def test_no_text_takes_long(piece):
    began = os.times().user
    personal.mask(piece * (100_000 // len(piece)) + "@")
    assert os.times().user - began < 2


def test_prompts_with_personal_data_go_or_are_masked(tmp_path):
    rows = [{"prompt": "Mail a@b.de and 0171-1234567", "user": "x"}, {"prompt": "Hi", "user": "x"}]
    found, report = run(tmp_path, rows)
    assert everything(found) == ["Hi"]
    masked, also = run(tmp_path, rows, "masked", mask=True)
    assert everything(masked) == ["Hi", "Mail [EMAIL] and [PHONE]"]
    for text in (report, also):
        assert "a@b.de" not in text and "1234567" not in text
        assert "data, EMAIL: 1\n" in text and "data, PHONE: 1\n" in text and "Mail [EMAIL]" in text


def test_no_example_shows_personal_data(tmp_path):
    """Not of other rules either, nor where a long one is cut."""
    begin = "Please " * 12
    rows = [{"prompt": f"{begin}{i} tell a{i}@b.de {'x' * i}", "user": "u"} for i in range(30)]
    rows += [{"prompt": f"{'y' * i} c{i}@d.de {'z' * 300}", "user": "u"} for i in range(60, 100)]
    rows += rows
    _, report = run(tmp_path, rows, per_user=2)
    assert "stays: " in report and "@" not in report


# ---- the command --------------------------------------------------------------------------------


def command(*args, cwd):
    return subprocess.run(
        [sys.executable, "-m", "interop.hygiene", *map(str, args)],
        cwd=cwd, env=os.environ | {"PYTHONPATH": ROOT}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_command_reads_a_table(tmp_path):
    (tmp_path / "q.csv").write_text("question,uid\n" + "".join(f"Is {i}?,{i}\n" for i in range(99)))
    done = command("q.csv", "--columns", "prompt=question", "--user", "uid", "--out", "new/prompts",
                   cwd=tmp_path)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    found, report = read(tmp_path / "new/prompts")
    assert len(everything(found)) == 99 and "99 were read" in report
    assert "uid" not in (tmp_path / "new/prompts/train.jsonl").read_text()
    again = command("q.csv", "--columns", "prompt=question", "--out", "new/prompts", cwd=tmp_path)
    assert again.returncode == 2 and "new/prompts is there already" in again.stderr


def refused(capsys, monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["hygiene", *map(str, args)])
    with pytest.raises(SystemExit) as ended:
        cli.run(hygiene.main, hygiene.Config, hygiene.PRESETS, "", "files")
    said = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(said) == 1
    return said[0]


ROWS = [{"prompt": "Hi", "user": "a"}, {"prompt": "Ho", "user": 7}]
BAD = {
    "no such column": (ROWS, ["--user", "uid"], "a field uid; the record has prompt, user"),
    "no user": ([{"prompt": "Hi", "user": " "}], [], "line 1: the field user is empty"),
    "no user, strict": ([*ROWS, {"prompt": "Hu", "user": None}], ["--strict"], "line 3: the field"),
    "a list": ([{"prompt": "Hi", "user": ["a"]}], [], "must be a text or a number, and is a list"),
    "no records": ([], [], "holds no record"),
    "no prompt": ([{"prompt": "", "user": "a"}], [], "line 1: the prompt is empty"),
    "shares": (ROWS, ["--valid", "0.5", "--test", "0.5"], "leave nobody to train on"),
    "a cap of none": (ROWS, ["--per-user", "0"], "--per-user must be >= 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(tmp_path, capsys, monkeypatch, name):
    rows, args, says = BAD[name]
    path, out = put(tmp_path / "q.jsonl", rows), tmp_path / "out"
    assert says in refused(capsys, monkeypatch, path, "--user", "user", "--out", out, *args)
    assert os.listdir(tmp_path) == ["q.jsonl"]


def test_what_is_no_file_no_text_or_there_already_is_refused(tmp_path, capsys, monkeypatch):
    (tmp_path / "latin").write_bytes(b'{"prompt": "\xe9"}\n')
    path = put(tmp_path / "q.jsonl", ROWS)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine")
    before = sorted(os.listdir(tmp_path))
    for args, says in (
        ([tmp_path / "latin", "--out", tmp_path / "out"], "line 1: byte 12 is not UTF-8"),
        ([tmp_path / "none", "--out", tmp_path / "out"], "none does not exist"),
        ([path, "--out", tmp_path / "full"], "full is there already"),
        ([path, "--out", tmp_path / "latin"], "latin is there already"),
        ([path], "has no name"),
        (["--out", tmp_path / "out"], "no prompt"),
    ):
        assert says in refused(capsys, monkeypatch, *args)
    assert sorted(os.listdir(tmp_path)) == before and os.listdir(tmp_path / "full") == ["mine"]


def test_a_record_without_a_user_is_skipped_and_shown(tmp_path, capsys):
    found, _ = run(tmp_path, [*ROWS, {"prompt": "Hu", "user": ""}])
    assert everything(found) == ["Hi", "Ho"]
    assert "line 3: the field user is empty" in capsys.readouterr().out


@pytest.mark.parametrize("nth", range(4))
def test_what_is_interrupted_leaves_nothing(tmp_path, monkeypatch, nth):
    synced = []

    def fsync(descriptor):
        synced.append(descriptor)
        if len(synced) > nth:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, ROWS)
    assert os.listdir(tmp_path) == ["out.jsonl"]
