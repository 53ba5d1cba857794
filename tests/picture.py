"""The picture of the page in docs/: python -m tests.picture [docs/page.png], with Chromium and
selenium as in test_browser.py."""

import re
import shutil
import subprocess
import sys
import tempfile
import time

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains

from plumbing.results import write_jsonl

TASK = {
    "prompt": "Why is the sky blue? Two sentences, for a child.",
    "responses": [
        "Light from the sun has all colours in it. The air throws the blue about most.",
        "Why is the sky blue? Why is grass green? Why is snow white?",
        "The sky is blue because it mirrors the sea, and at night the sea is black.",
    ],
}
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--window-size=1000,1000", "--hide-scrollbars")


def main(out="docs/page.png"):
    with tempfile.TemporaryDirectory() as folder:
        write_jsonl(f"{folder}/tasks.jsonl", [TASK])
        command = [sys.executable, "page.py", "rank", f"{folder}/tasks.jsonl", "--out",
                   f"{folder}/human", "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            link = next(m[1] for line in server.stdout if (m := re.match(r"me: (\S+)", line)))
            options = webdriver.ChromeOptions()
            for flag in FLAGS:
                options.add_argument(flag)
            driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
            driver.get(link)
            time.sleep(1)
            for key in ("6", "j", "4", "j", "1", "k", "k"):
                ActionChains(driver).send_keys(key).perform()
            driver.execute_script("window.scrollTo(0, 0)")
            driver.save_screenshot(out)
            driver.quit()
            server.terminate()


if __name__ == "__main__":
    main(*sys.argv[1:])
