"""Run folders as a training run leaves them, made up from a seed; pages in headless Chromium."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
RECIPE = {
    "task": "rl",
    "output": "runs/sums",
    "seed": 3,
    "steps": 60,
    "model": {"path": "models/SmolLM2-135M-Instruct", "precision": "float32", "lora": None},
    "data": {"source": {"name": "arithmetic", "operation": "add", "digits": 2}},
    "advantage": {"name": "group"},
    "policy_loss": {"name": "clip", "low": 0.2, "high": 0.28},
    "regularisers": [{"name": "kl", "coefficient": 0.01}],
    "reducer": {"name": "token_mean"},
}
EXAMPLES = "".join(
    f"<|im_start|>user\nWhat is {a} + {b}?<|im_end|>\n<|im_start|>assistant\n{a} + {b} = {a + b}. "
    f"The answer is \\boxed{{{a + b}}}.<|im_end|>\n"
    for a, b in ((54, 94), (17, 38))
)
SETS = ("addition", "subtraction")
EVERY = 10


def embedded(page, name="report"):
    """Data in a page, by the id of its element."""
    pattern = rf'<script type="application/json" id="{name}">(.*?)</script>'
    return json.loads(re.search(pattern, page.read_text(), re.S)[1])


class RunMaker:
    """Writes a run folder of ``steps`` steps in which accuracy and length rise together."""

    def __init__(self, path: Path, steps: int = 60, seed: int = 0, sets: tuple[str, ...] = SETS):
        self.path, self.steps, self.sets = path, steps, sets
        self.random = np.random.default_rng(seed)

    def write(self, prompts: int = 4, samples: int = 8) -> Path:
        self.path.mkdir(parents=True)
        (self.path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
        info = {
            "versions": {"rlvr": "0.1.0", "torch": "2.13.0", "transformers": "5.19.1"},
            "seed": 3,
            "started": "2026-03-05T14:07:31+00:00",
            "command": ["rlvr", "train", "recipes/sums.yaml"],
        }
        (self.path / "run.json").write_text(json.dumps(info))
        rows = [self.metrics(step) for step in range(self.steps + 1)]
        self.write_lines("metrics.jsonl", rows)
        for step in range(self.steps + 1):
            name = f"step_{step:06d}.jsonl"
            if step > 0:
                self.write_lines(f"completions/{name}", self.completions(step, prompts, samples))
            if step % EVERY == 0:
                found = [
                    {**row, "set": name}
                    for name in self.sets
                    for row in self.completions(step, 12, 1)
                ]
                self.write_lines(f"evaluations/{name}", found)
        (self.path / "model").mkdir()
        return self.path

    def write_lines(self, name: str, rows: list[dict]) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def skill(self, step: int) -> float:
        return 0.2 + 0.7 / (1 + np.exp(-(step - 25) / 8))

    def metrics(self, step: int) -> dict:
        skill, noise = self.skill(step), self.random.normal
        row: dict = {"step": step}
        if step % EVERY == 0:
            for index, name in enumerate(self.sets):
                accuracy = round((skill - 0.12 * index + noise(0, 0.02)) * 192) / 192
                row[f"eval/{name}/accuracy"] = min(1.0, max(0.0, accuracy))
                row[f"eval/{name}/length"] = 14 + 12 * skill + index
                row[f"eval/{name}/truncated"] = 0.02 * index
        if step == 0:
            return row
        mean = float(np.clip(skill + noise(0, 0.05), 0, 1))
        return row | self.training(step, mean) | self.seconds(step)

    def timeline(self, steps):
        """Spans of a pipeline: the engine samples step s + 1 while the learner updates step s."""
        spans = []
        for step in range(1, steps + 1):
            start = 1e9 + 7.0 * step
            spans += [
                ("engine", step, "generate", start, start + 6.5),
                ("engine", step, "verify", start + 6.5, start + 6.9),
                ("learner", step, "update", start + 7.0, start + 12.0),
                ("learner", step, "wait", start + 12.0, start + 14.0),
            ]
        names = ("lane", "step", "phase", "begin", "end")
        return [dict(zip(names, span, strict=True)) for span in spans]

    def training(self, step: int, mean: float) -> dict:
        noise = self.random.normal
        length = 16 + 12 * mean + noise(0, 0.6)
        return {
            "reward/mean": mean,
            "reward/std": float(np.sqrt(mean * (1 - mean))),
            "reward/correct": mean,
            "reward/zero_variance_groups": float(np.clip(0.2 + 1.5 * (mean - 0.5) ** 2, 0, 1)),
            "policy/entropy": 0.9 * np.exp(-step / 40) + abs(noise(0, 0.02)),
            "policy/kl_reference": 0.0006 * step + abs(noise(0, 0.0008)),
            "policy/kl_old": abs(noise(0, 0.0005)),
            "policy/clip_fraction": abs(noise(0.01, 0.004)),
            "policy/ratio_max": 1.2 + abs(noise(0, 0.4)),
            "policy/loss": noise(0, 0.02),
            "completion/length_mean": length,
            "completion/length_max": min(40, int(length + abs(noise(8, 3)))),
            "completion/truncated": float(np.clip(0.15 - 0.002 * step + noise(0, 0.01), 0, 1)),
            "learner/grad_norm": 0.8 * np.exp(-step / 50) + abs(noise(0, 0.1)),
            "learner/lr": 1e-5 * min(1, step / 5) * (1 - step / 80),
            "learner/skipped_updates": 0,
            "learner/pad_fraction": 0.18 + noise(0, 0.02),
            "verifier/timeouts": 0,
            "verifier/crashes": 0,
            "verifier/no_answer": int(30 * (1 - mean)),
            "memory/rss_gib": 4.2 + 0.01 * step,
        }

    def seconds(self, step: int) -> dict:
        jitter = self.random.uniform
        parts = {"generate": 6.5, "verify": 0.4, "statistics": 2.1, "update": 7.8}
        if step % EVERY == 0:
            parts |= {"evaluate": 5.0}
        if step % 20 == 0:
            parts |= {"checkpoint": 1.6}
        times = {f"time/{name}": value * jitter(0.9, 1.1) for name, value in parts.items()}
        return {
            **times,
            "time/step": sum(times.values()) + 0.1,
            "throughput/generated_tokens_per_second": jitter(380, 430),
            "throughput/trained_tokens_per_second": jitter(320, 350),
        }

    def completions(self, step: int, prompts: int, samples: int) -> list[dict]:
        rows = []
        for prompt in range(prompts):
            a, b = (int(number) for number in self.random.integers(10, 99, 2))
            rows += [self.completion(step, prompt, sample, a, b) for sample in range(samples)]
        return rows

    def completion(self, step: int, prompt: int, sample: int, a: int, b: int) -> dict:
        draw = self.random.random
        correct = draw() < self.skill(step)
        cut = not correct and draw() < 0.3
        given = a + b if correct else a + b + int(self.random.choice([-10, -1, 1, 10]))
        work = (
            f"First the units: {a % 10} + {b % 10} = {a % 10 + b % 10}.\n" if draw() < 0.6 else ""
        )
        text = f"{work}{a} + {b} = {given}. The answer is " + (
            "" if cut else f"\\boxed{{{given}}}."
        )
        tokens = re.findall(r"\\boxed|\n| ?\d| ?[A-Za-z]+| ?[^\w\s]", text)
        certain = self.random.beta(6, 0.6, len(tokens))
        return {
            "step": step,
            "problem_id": f"add-{a}-{b}",
            "group": f"{step}-{prompt}",
            "sample": sample,
            "prompt": f"{EXAMPLES}<|im_start|>user\nWhat is {a} + {b}?<|im_end|>\n"
            "<|im_start|>assistant\n",
            "response": text,
            "answer": str(a + b),
            "reward": float(correct) + (0.0 if cut else 0.1),
            "rewards": {"accuracy": float(correct), "boxed": 0.0 if cut else 1.0},
            "correct": bool(correct),
            "extracted": None if cut else str(given),
            "reason": "equal" if correct else ("no boxed answer" if cut else "not equal"),
            "finish_reason": "length" if cut else "stop",
            "advantage": float(np.round(correct - self.skill(step), 3)),
            "tokens": tokens,
            "logprobs": [float(value) for value in np.log(np.clip(certain, 1e-4, 1))],
            "policy_version": step - 1,
        }


@pytest.fixture
def maker(tmp_path):
    return RunMaker(tmp_path / "sums")


@pytest.fixture
def run(maker):
    return maker.write()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if not CHROMIUM or not DRIVER:
        pytest.skip("chromium and chromedriver are not installed")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(60)
    driver.get("about:blank")  # the browser's own first page ends before a test begins
    yield driver
    driver.quit()


class Page:
    """The driver with what these tests ask of it."""

    def __init__(self, driver, path):
        self.driver, self.path = driver, path
        self.resize(1440, 1000)
        self.scheme("light")
        self.logs()
        driver.get(path.as_uri())

    def resize(self, width, height):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def scheme(self, value):
        media = {"features": [{"name": "prefers-color-scheme", "value": value}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def one(self, selector):
        return self.driver.find_element("css selector", selector)

    def texts(self, selector):
        return [element.text for element in self.all(selector)]

    def js(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys):
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def choose(self, label, text):
        from selenium.webdriver.support.select import Select

        path = f"//label[span[text()='{label}']]/select"
        Select(self.driver.find_element("xpath", path)).select_by_visible_text(text)

    def logs(self):
        """Console lines, and addresses asked for since the last call."""
        console = [entry["message"] for entry in self.driver.get_log("browser")]
        events = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        asked = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
            # The browser's first tab is a page of its own (chrome://, with frames of
            # chrome-untrusted://), which may still be loading.
            and not event["params"]["documentURL"].startswith("chrome")
        ]
        return console, asked


@pytest.fixture
def opened(chromium):
    """Opens pages; afterwards nothing may have been logged or fetched but the files themselves."""
    pages = []

    def open_page(path):
        pages.append(Page(chromium, path))
        return pages[-1]

    yield open_page
    console, asked = pages[-1].logs()
    own = {page.path.as_uri() for page in pages} | {"data:,"}
    assert console == []
    assert set(asked) <= own
    assert pages[-1].path.as_uri() in asked, "the log of requests works at all"
