"""evidence/seeds.py: targets and tables over seeds, and the pages as committed."""

import json
import math
import os
import sys

import pytest

from evidence import seeds
from plumbing import cli

CASES = ("chat", "closed qa", "extraction", "insult", "not in text", "outside", "rewriting")
README = "# A\n<!-- systems -->\nstale\n<!-- /systems -->\nB\n"
# what the systems of a made-up report have, where it is not that of SFT
SFT = {"win_rate": 0.5, "length_controlled": 0.5, "won": 0.3, "tied": 0.4, "lost": 0.3,
       "decided": 0.5, "elo": 0.0, "true_score": 0.0, "helpful": 0.5, "hallucination": 0.3,
       "harmless": 1.0, "rm_score": 0.0, "kl": 0.0, "length": 10.0, "pretrain_loss": 1.2,
       "best_of": 1, "prompts": 400, "samples": 8, "fall": 5.0, "eos_rate": 1.0}  # fmt: skip
OTHERS = {
    "base": {"true_score": -3.0},
    "prompted base": {"true_score": -2.5},
    "flan": {"true_score": 0.2, "hallucination": 0.25},
    "feedme": {"true_score": 0.5, "hallucination": 0.2},
    "sft best of 16": {"true_score": 0.6, "kl": 1.8, "best_of": 16},
    "ppo-plain": {"true_score": 0.9},
    "ppo": {"length_controlled": 0.64, "won": 0.5, "tied": 0.3, "lost": 0.2, "decided": 0.71,
            "true_score": 1.0, "helpful": 0.7, "hallucination": 0.1, "length": 10.5,
            "pretrain_loss": 1.1},
    "ceiling": {"true_score": 1.2},
}  # fmt: skip


def group(keys, **figures):
    return {key: SFT | {"prompts": 10} | figures for key in keys}


def apart(helpful, hallucination):
    """What is asked apart; of a best of n without the turns."""
    shares = {"helpful": helpful, "right": helpful - 0.01, "hallucination": hallucination,
              "neither": 0.02, "prompts": 30}  # fmt: skip
    known = {"open qa": shares, "unanswerable": shares | {"right": 0.95}}
    return {"turns": {turn: shares for turn in "123456"}, "untouched": known, "touched": known}


def system(name, **figures):
    """A system of report.json: better at every use case and turn where it is more helpful."""
    whole = SFT | OTHERS.get(name, {}) | figures
    share = {"helpful": whole["helpful"], "hallucination": whole["hallucination"]}
    use_cases = group(CASES, **share)
    use_cases["outside"]["helpful"] = 0.9 if name == "ppo" else 0.5
    found = {"name": name, **whole, "use_cases": use_cases, **apart(**share)}
    return found | ({"turns": {}} if whole["best_of"] > 1 else {})


def report(**figures):
    """The systems of report.json; figures: those of PPO-ptx that differ."""
    found = [system(name) for name in ("sft", *OTHERS) if name != "ppo"]
    return [*found, system("ppo", **figures)]


def write(folder, seed, systems):
    """report.json of a seed, as evaluate.py leaves it -> its path."""
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/report.json", "w") as f:
        json.dump({"baseline": "sft", "systems": systems}, f)
    with open(f"{folder}/made.json", "w") as f:
        json.dump({"config": {"seed": seed}, "files": {}}, f)
    return f"{folder}/report.json"


@pytest.fixture
def config(tmp_path):
    """Seeds 8, 7 and 9, whose PPO-ptx is preferred at equal length 0.63, 0.64 and 0.65 times."""
    (tmp_path / "README.md").write_text(README)
    paths = []
    for seed, rate in ((8, 0.63), (7, 0.64), (9, 0.65)):
        paths.append(write(tmp_path / str(seed), seed, report(length_controlled=rate)))
    return seeds.Config(tuple(paths), str(tmp_path / "docs"), str(tmp_path / "README.md"))


def read(*path):
    with open(os.path.join(*path)) as f:
        return f.read()


def rows(text, first):
    """The cells of the rows of tables that begin so."""
    found = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found]


# -------------------------------------------------------------------------------------------------
# what is committed


def test_the_committed_pages_are_those_that_the_command_writes(root):
    path = os.path.join(root, "docs", "seeds.jsonl")
    if not os.path.exists(path):
        pytest.skip("docs/seeds.jsonl was not made yet")
    lines = seeds.read_lines(path)
    assert read(root, "docs", "WORLD.md") == seeds.world(lines), "run python -m evidence.seeds"
    readme = read(root, "README.md")
    assert seeds.readme(readme, lines) == readme, "run python -m evidence.seeds"


# -------------------------------------------------------------------------------------------------
# targets


@pytest.mark.parametrize(
    ("mean", "half", "low", "high", "says"),
    [
        (0.7, 0.05, 0.62, math.inf, "**met**"),
        (0.62, 0.0, 0.62, math.inf, "**met**, but the interval reaches over the bound"),
        (0.64, 0.05, 0.62, math.inf, "**met**, but the interval reaches over the bound"),
        (0.60, 0.01, 0.62, math.inf, "**not met**"),
        (0.60, 0.05, 0.62, math.inf, "**not met**, but the interval reaches over the bound"),
        (0.3, 0.05, -math.inf, 0.42, "**met**"),
        (0.5, 0.05, -math.inf, 0.42, "**not met**"),
        (1.0, 0.05, 0.9, 1.1, "**met**"),
        (0.8, 0.05, 0.9, 1.1, "**not met**"),
        (1.12, 0.05, 0.9, 1.1, "**not met**, but the interval reaches over the bound"),
    ],
)
def test_a_target_is_met_if_the_mean_is_within_its_bounds(mean, half, low, high, says):
    assert seeds.judged(mean, half, low, high) == says


# {figure of PPO-ptx: (a value that is too bad, the target that it misses)}
MISSED = {
    "length_controlled": (0.61, "PPO-ptx preferred to SFT at equal length"),
    "length": (8.9, "length of PPO-ptx, as a ratio to SFT's"),
    "hallucination": (0.13, "hallucination of PPO-ptx, as a ratio to SFT's"),
    "helpful": (0.63, "helpful, PPO-ptx minus SFT"),
    "true_score": (0.55, "true score, PPO-ptx minus SFT's best of 16"),
    "pretrain_loss": (1.23, "pretraining loss of PPO-ptx, as a ratio to SFT's"),
    "decided": (0.69, "PPO-ptx preferred to SFT, of what is no tie"),
    "fall": (10.1, "right answers of PPO-ptx, first turn minus last, points"),
}


@pytest.mark.parametrize("figure", [None, *MISSED])
def test_each_target_is_missed_by_what_it_is_about(config, tmp_path, figure):
    value, missed = MISSED.get(figure, (0, None))
    systems = report(**{figure: value}) if figure else report()
    write(tmp_path / "8", 8, systems)
    lines = [seeds.line_of(config.reports[0], "x")] * 2
    verdicts = {what: verdict for what, _, _, verdict in seeds.targets_rows(lines)}
    assert len(verdicts) == 14
    assert [what for what, says in verdicts.items() if says != "**met**"] == (
        [missed] if figure else []
    )


def changed(group, key, **figures):
    """The systems of report.json, with other figures of PPO-ptx in one group."""
    systems = report()
    systems[-1][group][key] |= figures
    return systems


@pytest.mark.parametrize(
    ("systems", "missed"),
    [
        (changed("use_cases", "outside", helpful=0.79),
         "right answers of PPO-ptx, use case outside"),
        (changed("use_cases", "closed qa", hallucination=0.8), "the same in the closed domain"),
        (changed("use_cases", "chat", helpful=0.45),
         "helpful by use case, PPO-ptx minus SFT, the worst of them"),
    ],
)  # fmt: skip
def test_targets_of_some_prompts(tmp_path, systems, missed):
    line = seeds.line_of(write(tmp_path, 1, systems), "x")
    verdicts = {what: says for what, _, _, says in seeds.targets_rows([line, line])}
    assert [what for what, says in verdicts.items() if not says.startswith("**met")] == [missed]


def test_a_use_case_may_fall_by_its_interval(tmp_path):
    """Falls of 0.02 and 0.04: 0.03 with an interval of 12.7 standard errors of 0.01."""
    lines = []
    for helpful in (0.48, 0.46):
        systems = changed("use_cases", "chat", helpful=helpful)
        lines.append(seeds.line_of(write(tmp_path, 1, systems), "x"))
    _, figure, _, verdict = seeds.use_cases_row(lines)
    assert figure == "chat: -0.030 ± 0.127" and verdict == "**met**"
    _, figure, _, verdict = seeds.use_cases_row([lines[0], lines[0]])
    assert figure == "chat: -0.020 ± 0.000" and verdict == "**not met**: chat"


def test_the_closed_domain_is_the_mean_over_its_answers():
    cases = {"closed qa": {"hallucination": 0.5, "prompts": 30}, "chat": {"hallucination": 1.0},
             "extraction": {"hallucination": 0.2, "prompts": 10},
             "not in text": {"hallucination": 0.9, "prompts": 10},
             "rewriting": {"hallucination": 0.0, "prompts": 10}}  # fmt: skip
    assert seeds.closed_domain(cases) == pytest.approx((15 + 2 + 9 + 0) / 60)


# -------------------------------------------------------------------------------------------------
# the pages


def test_the_pages_say_what_the_reports_say(config):
    """0.63, 0.64 and 0.65: 0.64 ± 4.303 · 0.01 / √3 = 0.64 ± 0.0248."""
    verdicts = seeds.main(config)
    assert len(verdicts) == 14
    text, own = read(config.docs, "WORLD.md"), read(config.readme)
    target = rows(text, "PPO-ptx preferred to SFT at equal length")[0]
    assert target[1:3] == ["0.640 ± 0.025", "at least 0.62"]
    assert target[3] == "**met**, but the interval reaches over the bound"
    for page in (text, own):
        row = rows(page, "PPO-ptx")[0]
        assert row[1:4] == ["0.500 ± 0.000", "0.640 ± 0.025", "0.50 / 0.30 / 0.20"]
        assert rows(page, "SFT, best of 16")[0][8] == "≤ 1.8 ± 0.0"
    assert "stale" not in own
    order = [line.split("|")[1].strip() for line in own.splitlines() if line.startswith("| ")]
    assert order[2:] == list(seeds.SYSTEMS.values())
    assert len(rows(text, "chat")) == 3 and rows(text, "chat")[1][8] == "0.100 ± 0.000"
    assert "400, with 8 answers of each system" in text
    assert "nan" not in text and "inf " not in text


def test_what_is_asked_apart_has_its_tables(config):
    """By turn, of countries, of places that nobody knows: the rows after that of all answers."""
    seeds.main(config)
    text = read(config.docs, "WORLD.md")
    _, turns, countries, unknown = rows(text, "PPO-ptx")
    assert turns[1:] == ["0.700 ± 0.000"] * 6 + ["5.0 ± 0.0"]
    assert countries[1:] == [f"{x} ± 0.000" for x in ("0.690", "0.690", "0.100", "0.100", "0.020",
                                                      "0.020")]  # fmt: skip
    assert unknown[1] == "0.950 ± 0.000"
    assert len(rows(text, "SFT, best of 16")) == 3, "it is not asked the dialogues"
    assert len(rows(text, "SFT")) == 4


def test_a_line_for_each_seed_in_the_order_of_the_reports(config):
    seeds.main(config)
    lines = seeds.read_lines(f"{config.docs}/seeds.jsonl")
    assert [line["seed"] for line in lines] == [8, 7, 9]
    assert "seeds 8, 7, 9" in read(config.docs, "WORLD.md")
    assert all(line["commit"] in read(config.docs, "WORLD.md") for line in lines)


def test_the_pages_are_written_again_of_the_lines_alone(config):
    seeds.main(config)
    names = ("seeds.jsonl", "WORLD.md")
    before = [read(config.docs, name) for name in names] + [read(config.readme)]
    os.remove(f"{config.docs}/WORLD.md")
    seeds.main(seeds.Config((), config.docs, config.readme))
    assert [read(config.docs, name) for name in names] + [read(config.readme)] == before
    seeds.main(seeds.Config((), config.docs, ""))


def test_the_readme_is_left_as_it_is_but_for_its_table(config):
    seeds.main(config)
    rest = [x for x in read(config.readme).splitlines() if x and not x.startswith("|")]
    assert rest == [x for x in README.splitlines() if x != "stale"]


def test_a_system_that_one_seed_lacks_is_no_row(config, tmp_path):
    write(tmp_path / "9", 9, [s for s in report() if s["name"] != "prompted base"])
    seeds.main(config)
    assert rows(read(config.readme), "prompted base") == []
    assert len(rows(read(config.readme), "base")) == 1


def test_the_picture_is_drawn_and_may_be_drawn_again(config):
    pytest.importorskip("matplotlib")
    for _ in range(2):
        seeds.main(config)
    with open(f"{config.docs}/systems.png", "rb") as f:
        assert f.read(4) == b"\x89PNG"


# -------------------------------------------------------------------------------------------------
# what is refused


@pytest.mark.parametrize("name", seeds.BEGINS)
def test_a_file_of_somebody_else_is_not_replaced(config, name):
    os.makedirs(config.docs)
    with open(f"{config.docs}/{name}", "w") as f:
        f.write("mine")
    with pytest.raises(ValueError, match=f"{name} is there already"):
        seeds.main(config)
    assert read(config.docs, name) == "mine" and "stale" in read(config.readme)


def test_a_page_without_a_place_is_refused_before_anything_is_written(config):
    with open(config.readme, "w") as f:
        f.write("# A\n")
    with pytest.raises(ValueError, match="no place for the table of systems"):
        seeds.main(config)
    assert os.listdir(config.docs) == []


@pytest.mark.parametrize("broken", ["{", "[]", '{"systems": 3}', '{"systems": [{"name": "sft"}]}'])
def test_a_file_that_is_no_report_is_named(config, broken):
    with open(config.reports[1], "w") as f:
        f.write(broken)
    with pytest.raises(ValueError, match=r"7/report\.json is no report of `make compare`"):
        seeds.main(config)
    assert not os.path.exists(f"{config.docs}/seeds.jsonl")


@pytest.mark.parametrize(
    "systems",
    [report(helpful=math.nan), [s for s in report() if s["name"] != "ceiling"][:3],
     [{k: v for k, v in s.items() if k != "won"} for s in report()],
     [s | {"use_cases": {}} for s in report()]],
)  # fmt: skip
def test_a_report_that_lacks_what_the_targets_need_is_refused(config, tmp_path, systems):
    write(tmp_path / "9", 9, systems)
    with pytest.raises(ValueError, match=r"9/report\.json is no report"):
        seeds.main(config)


@pytest.mark.parametrize("broken", ["{", "null", '{"seed": 1}', '{"seed": "x", "systems": {}}'])
def test_a_broken_line_is_named(config, broken):
    seeds.main(config)
    with open(f"{config.docs}/seeds.jsonl", "a") as f:
        f.write(broken + "\n")
    with pytest.raises(ValueError, match=r"seeds\.jsonl, line 4 is no line"):
        seeds.main(seeds.Config((), config.docs, config.readme))


def test_one_seed_is_too_few(config, monkeypatch, capsys):
    first = config.reports[0]
    for given in ((first,), (first, first)):
        with pytest.raises(ValueError, match="at least two reports"):
            seeds.main(seeds.Config(given, config.docs, config.readme))
    assert "stale" in read(config.readme)
    argv = ["seeds.py", "--docs", f"{config.docs}/none", "--readme", config.readme]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: None)
    with pytest.raises(SystemExit, match="2"):
        cli.run(seeds.main, seeds.Config, seeds.PRESETS, seeds.__doc__, "reports")
    assert "has no seeds.jsonl yet" in capsys.readouterr().err
