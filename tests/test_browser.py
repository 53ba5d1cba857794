"""The page in a real browser: headless Chromium with its driver, by selenium. Skipped where they
are not, or a failure if BROWSER_REQUIRED is set."""

import importlib
import json
import os
import re
import shutil
import time

import pytest
from test_server import EVIL, command, get, tasks_of, tiny  # noqa: F401 (command is a fixture)

from plumbing.results import write_jsonl

FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--no-first-run")


@pytest.fixture(scope="module")
def selenium():
    if os.environ.get("BROWSER_REQUIRED"):
        return importlib.import_module("selenium.webdriver")
    found = pytest.importorskip("selenium.webdriver")
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        pytest.skip("Debian's packages chromium and chromium-driver are not here")
    return found


@pytest.fixture
def browser(selenium):
    """Open a window -> its driver; what the page wrote to the console is an error."""
    from selenium.webdriver.chrome.service import Service

    opened = []

    def open_window(link, width=1280, height=900, dark=False):
        options = selenium.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        for flag in (*FLAGS, f"--window-size={width},{height}",
                     *(["--blink-settings=preferredColorScheme=0"] if dark else [])):
            options.add_argument(flag)
        driver = selenium.Chrome(options, Service(shutil.which("chromedriver")))
        opened.append(driver)
        driver.get(link)
        return driver

    yield open_window
    said = [line for driver in opened for line in driver.get_log("browser")]
    for driver in opened:
        driver.quit()
    # a server that was killed on purpose is no fault of the page
    assert [line for line in said if "ERR_CONNECTION" not in line["message"]] == []


def until(what, seconds=15):
    """Wait for what() to be true -> what it gave."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.05)
    return found


def press(driver, *keys, ctrl=False, alt=False):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    chain, held = ActionChains(driver), [Keys.CONTROL] * ctrl + [Keys.ALT] * alt
    for key in held:
        chain = chain.key_down(key)
    chain = chain.send_keys(*(getattr(Keys, key, key) for key in keys))
    for key in held:
        chain = chain.key_up(key)
    chain.perform()


def refusals(driver):
    """The status of each answer that the console shows as an error; they are forgotten."""
    messages = [line["message"] for line in driver.get_log("browser")]
    return [message.split("status of ")[1][:3] for message in messages]


def find(driver, selector):
    return driver.find_elements("css selector", selector)


def click(node):
    """In the middle of the window, where neither header nor footer is."""
    node.parent.execute_script("arguments[0].scrollIntoView({block: 'center'})", node)
    node.click()


def outputs(driver):
    return until(lambda: find(driver, ".output"))


def said(driver):
    [line] = find(driver, "#said")
    return line.text


def button(driver, text):
    [found] = [b for b in find(driver, "#buttons button") if b.text.startswith(text)]
    return found


def lines(folder, name="rankings"):
    path = folder / "human" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def ranking(command, tmp_path):  # noqa: F811
    """-> (process, {labeler: link}, how to start it again)"""
    path = str(tmp_path / "tasks.jsonl")
    write_jsonl(path, tasks_of(12, k=3))

    def start(port=0):
        process, port, tokens = command("rank", path, port=port)
        return process, {name: f"http://127.0.0.1:{port}/#{t}" for name, t in tokens.items()}, port

    return start


def rank_all(driver, marks="531"):
    shown = [node.text.split("\n")[0] for node in outputs(driver)]
    for mark in marks:
        press(driver, mark)
        press(driver, "j")
    return shown


def test_a_ranking_by_keys_alone_is_exactly_the_record(ranking, browser, tmp_path):
    _, links, _ = ranking()
    driver = browser(links["anna"])
    shown = [node.find_element("css selector", ".text").get_attribute("textContent")
             for node in outputs(driver)]
    assert find(driver, "#prompt")[0].text == f"User\n{shown[0].split()[0]}?"
    assert "Helpful: answers what was meant" in find(driver, "#asked")[0].text
    assert all(row.text.split()[0::8] == ["worst", "best"]
               for row in find(driver, "fieldset .row"))
    for mark in "531":
        press(driver, mark)
        press(driver, "j")
    press(driver, "ARROW_UP", alt=True)                      # the third rises: it ties the second
    assert [x.text for x in find(driver, "legend")][2] == "Output 3: overall quality, rank 2"
    press(driver, "ENTER", ctrl=True)
    until(lambda: said(driver) == "Saved.")
    [r] = lines(tmp_path)
    assert [r["responses"][k] for k in r["order"]] == shown
    assert [r["ranks"][k] for k in r["order"]] == [1, 2, 2]
    assert [r["ratings"][k] for k in r["order"]] == [5, 3, 1]
    assert r["labeler"] == "anna" and 0 < r["seconds"] < 60 and r["flags"] == [[], [], []]


def test_what_is_clicked_is_kept_and_what_is_skipped_has_a_reason(ranking, browser, tmp_path):
    _, links, _ = ranking()
    driver = browser(links["anna"])
    rank_all(driver, "641")
    click(find(driver, "#output-1 summary")[0])
    click(find(driver, "#output-1 details .choice")[2])     # makes something up
    press(driver, "2")
    assert find(driver, "#output-1 details")[0].get_attribute("open")       # it stays
    click(find(driver, "#raise-2")[0])
    assert driver.execute_script("return document.activeElement.id") == "raise-2"
    assert said(driver) == "Output 3: rank 2"
    assert "Changed by hand" in find(driver, "#ranking")[0].text
    click(find(driver, "#lower-0")[0])
    button(driver, "Save").click()
    until(lambda: len(lines(tmp_path)) == 1)
    [r] = lines(tmp_path)
    assert [r["ranks"][k] for k in r["order"]] == [1, 1, 1]
    assert [r["ratings"][k] for k in r["order"]] == [6, 2, 1]
    assert [r["flags"][k] for k in r["order"]] == [[], ["hallucination"], []]
    until(lambda: "1 done" in find(driver, "#progress")[0].text)
    press(driver, "s")
    until(lambda: selenium_alert(driver)).send_keys("it is empty")
    selenium_alert(driver).accept()
    until(lambda: "2 done" in find(driver, "#progress")[0].text)
    [skip] = lines(tmp_path, "skips")
    assert skip["reason"] == "it is empty" and len(lines(tmp_path)) == 1


def selenium_alert(driver):
    from selenium.common.exceptions import NoAlertPresentException

    try:
        return driver.switch_to.alert
    except NoAlertPresentException:
        return None


def test_of_a_long_dialogue_the_question_is_in_sight(command, browser, tmp_path):  # noqa: F811
    turns = [{"role": ("user", "assistant")[n % 2], "content": f"{n} " + "word " * 60}
             for n in range(12)] + [{"role": "user", "content": "The very question?"}]
    write_jsonl(str(tmp_path / "long.jsonl"), [{"prompt": turns, "responses": ["a", "b"]}])
    _, port, tokens = command("rank", str(tmp_path / "long.jsonl"), labelers=("anna",))
    driver = browser(f"http://127.0.0.1:{port}/#{tokens['anna']}")
    outputs(driver)
    for y in (0, 10_000):
        where = driver.execute_script(
            "window.scrollTo(0, arguments[0]); const [a, b] = ["
            "document.querySelector('#prompt').lastChild, document.querySelector('#prompt')]"
            ".map(x => x.getBoundingClientRect()); return [b.top, a.top, a.bottom, b.bottom]", y)
        assert where == sorted(where) and where[3] < 0.6 * 900


def test_what_a_model_says_is_text_whatever_it_is(ranking, browser):
    _, links, _ = ranking()
    driver = browser(links["anna"])
    for node in outputs(driver):
        text = node.find_element("css selector", ".text").get_attribute("textContent")
        assert text.endswith(EVIL) and not find(node, ".text *")
    assert not find(driver, "img") and driver.title == "Labelling"


def test_a_draft_survives_a_reload_and_the_back_button_saves_nothing_twice(
    ranking, browser, tmp_path
):
    _, links, _ = ranking()
    driver = browser(links["anna"])
    rank_all(driver, "71")
    driver.refresh()
    until(lambda: len(find(driver, "input[type=radio]:checked")) == 2)
    press(driver, "j", "j", "4")
    until(lambda: button(driver, "Save").is_enabled())
    # a double click
    twice = "const b = document.querySelector('#buttons .main'); b.click(); b.click()"
    driver.execute_script(twice)
    until(lambda: len(lines(tmp_path)) == 1)
    until(lambda: "1 done" in find(driver, "#progress")[0].text)
    driver.back()
    driver.forward()
    until(lambda: "1 done" in find(driver, "#progress")[0].text)
    assert len(lines(tmp_path)) == 1 and sorted(lines(tmp_path)[0]["ratings"]) == [1, 4, 7]


def test_what_was_saved_last_is_taken_back_and_comes_as_a_draft(ranking, browser, tmp_path):
    _, links, _ = ranking()
    driver = browser(links["anna"])
    assert "Undo" not in find(driver, "#buttons")[0].text
    shown = rank_all(driver, "642")
    [note] = find(driver, "textarea")
    note.send_keys("not sure: 1s")
    press(driver, "ENTER", ctrl=True)
    until(lambda: "1 done" in find(driver, "#progress")[0].text)
    press(driver, "u")
    until(lambda: said(driver).startswith("Taken back"))
    assert lines(tmp_path) == [] and "0 done" in find(driver, "#progress")[0].text
    assert "Undo" not in find(driver, "#buttons")[0].text
    assert [node.text.split("\n")[0] for node in outputs(driver)] == shown
    assert len(find(driver, "input[type=radio]:checked")) == 3
    find(driver, "#output-0")[0].click()
    press(driver, "1")
    press(driver, "ENTER", ctrl=True)
    until(lambda: len(lines(tmp_path)) == 1)
    [r] = lines(tmp_path)
    assert [r["ratings"][k] for k in r["order"]] == [1, 4, 2] and r["note"] == "not sure: 1s"


def test_killed_in_the_middle_of_a_submit_it_is_saved_once(ranking, browser, tmp_path):
    process, links, port = ranking()
    driver = browser(links["anna"])
    rank_all(driver)
    process.kill()
    process.wait()
    press(driver, "ENTER", ctrl=True)
    until(lambda: said(driver).startswith("Not saved yet"))
    assert lines(tmp_path) == []
    ranking(port)
    until(lambda: said(driver) == "Saved.", 30)
    assert len(lines(tmp_path)) == 1


def test_a_second_window_is_told_that_its_work_was_not_kept(ranking, browser, tmp_path):
    _, links, _ = ranking()
    drivers = [browser(links["anna"]) for _ in range(2)]
    for driver, marks in zip(drivers, ("777", "531")):
        rank_all(driver, marks)
    for driver in drivers:
        press(driver, "ENTER", ctrl=True)
        until(lambda driver=driver: "1 done" in find(driver, "#progress")[0].text)
    assert said(drivers[0]) == "Saved." and "what is here was not kept" in said(drivers[1])
    assert [r["ratings"] for r in lines(tmp_path)] == [[7, 7, 7]]
    assert drivers[1].execute_script("return Object.keys(localStorage)") == []
    assert refusals(drivers[1]) == ["409"]


def test_two_labelers_in_two_windows_get_different_tasks(ranking, browser, tmp_path):
    _, links, _ = ranking()
    drivers = {name: browser(links[name]) for name in ("anna", "ben")}
    for _ in range(3):
        for driver in drivers.values():
            done = find(driver, "#progress")[0].text
            rank_all(driver)
            press(driver, "ENTER", ctrl=True)
            until(lambda driver=driver, done=done: find(driver, "#progress")[0].text != done)
    records = lines(tmp_path)
    assert [r["labeler"] for r in records] == ["anna", "ben"] * 3
    assert len({r["task"] for r in records}) >= 5           # one of ten is asked twice


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_scrolls_down_only(ranking, browser, dark):
    _, links, _ = ranking()
    driver = browser(links["anna"], 500, 700, dark)
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                           {"width": 320, "height": 640, "deviceScaleFactor": 1, "mobile": True})
    outputs(driver)
    width = "return [innerWidth, document.documentElement.scrollWidth]"
    assert driver.execute_script(width) == [320, 320]
    rank_all(driver)
    until(lambda: find(driver, "h2"))
    assert driver.execute_script(width) == [320, 320]
    background = "return getComputedStyle(document.querySelector('header')).backgroundColor"
    assert (driver.execute_script(background) == "rgb(255, 255, 255)") is not dark


@pytest.mark.parametrize("dark", [False, True])
def test_an_accessibility_checker_finds_nothing(ranking, browser, dark):
    if not os.environ.get("BROWSER_REQUIRED"):
        pytest.importorskip("axe_core_python")
    axe = importlib.import_module("axe_core_python.selenium").Axe()
    _, links, _ = ranking()
    driver = browser(links["anna"], dark=dark)
    rank_all(driver)
    find(driver, "summary")[0].click()
    find(driver, ".output summary")[0].click()
    found = axe.run(driver)
    assert len(found["passes"]) > 10
    assert [(v["id"], [n["target"] for n in v["nodes"]]) for v in found["violations"]] == []


def test_both_bad_and_the_keys_of_a_comparison(command, browser, tmp_path):  # noqa: F811
    systems = [tiny(tmp_path / f"{name}.pt", seed) for seed, name in enumerate(("sft", "ppo"))]
    _, port, tokens = command("compare", *systems, "--n", "8", "--max-new", "4",
                              labelers=("anna",))
    driver = browser(f"http://127.0.0.1:{port}/#{tokens['anna']}")
    outputs(driver)
    assert "ppo" not in driver.page_source
    # neither the browser's keys nor what a key that stays down repeats are votes
    press(driver, "ARROW_DOWN", alt=True)
    for key, more in (("ArrowLeft", {"altKey": True}), ("t", {"repeat": True}),
                      ("t", {"ctrlKey": True})):
        driver.execute_script("document.dispatchEvent(new KeyboardEvent('keydown', {key: "
                              "arguments[0], ...arguments[1]}))", key, more)
    for n, key in enumerate(("b", "t", "ARROW_LEFT", "ARROW_RIGHT")):
        press(driver, key)
        until(lambda n=n: f"{n + 1} done" in find(driver, "#progress")[0].text)
    votes = lines(tmp_path, "votes")
    shown = [[v["ranks"][k] for k in v["order"]] for v in votes]
    assert shown == [[1, 1], [1, 1], [1, 2], [2, 1]]
    assert [v["both_bad"] for v in votes] == [True, False, False, False]
    for _ in range(20):
        if "That is all" in find(driver, "main")[0].text:
            break
        before = find(driver, "#progress")[0].text
        press(driver, "t")
        until(lambda before=before: find(driver, "#progress")[0].text != before)
    # only now is told who they were: one vote for the left and one for the right
    told = find(driver, "main p")[0].text
    assert "ppo" in told and sum(map(int, re.findall(r": (\d+)", told))) == 2


def test_a_demonstration_is_written(command, browser, tmp_path):  # noqa: F811
    (tmp_path / "mine.csv").write_text("prompt\nHow are you?\n")
    _, port, tokens = command("write", str(tmp_path / "mine.csv"), labelers=("anna",))
    driver = browser(f"http://127.0.0.1:{port}/#{tokens['anna']}")
    [area] = until(lambda: find(driver, "textarea"))
    area.send_keys("Fine, <b>thank you</b>.\nAnd you? 1s")
    driver.refresh()
    [area] = until(lambda: find(driver, "textarea"))
    assert area.get_attribute("value").endswith("And you? 1s")
    area.click()
    press(driver, "ENTER", ctrl=True)
    until(lambda: find(driver, "h2") and "That is all" in find(driver, "h2")[0].text)
    [r] = lines(tmp_path, "demonstrations")
    assert r["response"] == "Fine, <b>thank you</b>.\nAnd you? 1s" and r["form"] == "plain"


def test_a_prompt_and_examples_of_ones_own(command, browser, tmp_path):  # noqa: F811
    (tmp_path / "mine.csv").write_text("prompt,use_case\nHow are you?,chat\nWhy?,chat\n")
    _, port, tokens = command("write", str(tmp_path / "mine.csv"), labelers=("anna",))
    driver = browser(f"http://127.0.0.1:{port}/#{tokens['anna']}")

    def choose(form, *texts):
        until(lambda: len(find(driver, ".choice")) == 3)
        find(driver, ".choice")[form].click()
        areas = until(lambda: (x := find(driver, "textarea")) and len(x) == len(texts) and x)
        for area, text in zip(areas, texts):
            area.send_keys(text)

    choose(1, "Mine?", "")
    button(driver, "Save").click()
    until(lambda: said(driver) == "your answer is empty: write it, or skip the task")
    assert refusals(driver) == ["400"]
    find(driver, "textarea")[1].send_keys("Yours.")
    button(driver, "Save").click()
    until(lambda: "1 done" in find(driver, "#progress")[0].text)
    choose(2, "Add.", "1 1", "2", "2 2", "4")
    [another] = [b for b in find(driver, "main button") if b.text == "Another pair"]
    another.click()                                          # and leave it empty
    button(driver, "Save").click()
    until(lambda: find(driver, "h2"))
    own, *few = lines(tmp_path, "demonstrations")
    assert (own["prompt"][0]["content"], own["response"]) == ("Mine?", "Yours.")
    assert [r["response"] for r in few] == ["2", "4"]
    assert few[0]["prompt"][0]["content"] == "Add.\n\n2 2\n4\n\n1 1"


def test_a_chat_in_which_one_of_two_answers_is_better(command, browser, tmp_path):  # noqa: F811
    _, port, tokens = command("chat", tiny(tmp_path / "sft.pt"), "--max-new", "8",
                              labelers=("anna",))
    driver = browser(f"http://127.0.0.1:{port}/#{tokens['anna']}")

    def offers(text):
        return f"\n{text}" in f"\n{find(driver, '#buttons')[0].text}"

    def texts():
        return driver.execute_script(
            "return [...document.querySelectorAll('.output .text')].map(x => x.textContent)")

    def ask(text):
        [box] = until(lambda: find(driver, "textarea"))
        box.send_keys(text)
        press(driver, "ENTER", ctrl=True)
        until(lambda: offers("Another"))

    ask("Hi.")
    first = texts()
    press(driver, "ENTER", ctrl=True)                        # it goes on
    ask("And?")
    assert texts()[:3] == [*first, "And?"] and lines(tmp_path, "votes") == []
    driver.refresh()                                         # nothing is lost
    until(lambda: len(texts()) == 4)
    button(driver, "Another").click()
    until(lambda: offers("Right"))
    before = texts()
    twice = "const b = document.querySelectorAll('#buttons button')[1]; b.click(); b.click()"
    driver.execute_script(twice)
    until(lambda: len(texts()) == 4)
    assert said(driver) == "Saved." and texts() == [*before[:3], before[4]]
    [vote] = lines(tmp_path, "votes")
    assert vote["responses"] == before[3:] and vote["ranks"] == [2, 1]
    button(driver, "A new dialogue").click()
    assert texts() == []
