"""The page is self-contained, and works in a real browser: it sorts, filters and opens the runs of a cell without errors."""

from __future__ import annotations

import html as text
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from written import write_run

from fedbench.report import pictures, writer
from fedbench.report.evidence import gather
from fedbench.report.tables.metrics import METRICS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NASTY = r"</script><script>document.title='broken'</script> a_b & \u2028"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("page")
    for alpha in (0.1, 0.3):
        for seed in range(2):
            write_run(place / "results", "high", seed, {10: 0.3, 20: 0.8 + 0.02 * seed}, alpha=alpha, clients=True)
            write_run(place / "results", "low", seed, {20: 0.1 + 0.01 * seed}, alpha=alpha, clients=True)
            write_run(place / "results", NASTY, seed, {20: 0.5}, alpha=alpha, clients=True, method="nasty")
            write_run(place / "results", "ref", seed, {20: 0.9}, alpha=alpha, reference=True)
    write_run(place / "results", "lost", 0, {10: 0.2}, alpha=0.3, state="diverged")
    writer.write(gather([], place / "results"), place / "out")
    return place


@pytest.mark.slow
def test_the_page_is_self_contained_and_its_links_exist(made: Path) -> None:
    html = (made / "out" / "index.html").read_text()
    assert "http" not in html.replace("http://www.w3.org/2000/svg", "")  # a name, which nothing fetches
    assert not re.search(r'src="(?!data:)', html)
    links = [link for link in re.findall(r'href="([^"#]+)"', html) if not link.startswith("data:")]
    figures = {link for link in links if link.startswith("figures/")}
    assert len(figures) == len(list((made / "out" / "figures").iterdir())) > 15
    for link in links:
        assert (made / "out" / link).is_file(), link
    for metric in METRICS:
        assert metric.name in html
    assert "part-0.3-1" in html  # partition hashes
    assert str(made) not in html
    assert "1 diverged" in re.findall(r'role="status"><p>(.*?)<', html)[0]


def test_what_the_script_knows_is_data_and_no_code(made: Path) -> None:
    html = (made / "out" / "index.html").read_text()
    assert html.count("<script") == 2
    data = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[0])
    assert NASTY in data["labels"]
    (run,) = (
        r
        for r in data["runs"]
        if data["labels"][r["l"]] == "high" and r["d"] == 1 and data["settings"][r["s"]].endswith("dirichlet 0.1")
    )
    assert run["c"] == [[10, 0.3], [20, 0.82]]
    assert "records.jsonl" in run["f"]
    assert (made / "out" / data["results"] / run["n"] / "records.jsonl").is_file()
    assert data["configs"][run["k"]]["partition"]["alpha"] == 0.1
    assert dict(zip(data["hashes"], run["h"], strict=True))["partition_hash"] == "part-0.1-1"


STEPS = """
const rows = (table) => [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[0].textContent.trim());
const said = {}, errors = [];
window.addEventListener("error", (event) => errors.push(event.message));
const table = document.querySelector("table.grid"), head = table.querySelectorAll("th.sorts");
said.width = [document.documentElement.scrollWidth, window.innerWidth];
said.options = document.querySelectorAll("#setting option").length;
said.before = rows(table);
head[1].click(); said.down = rows(table); said.aria = head[1].getAttribute("aria-sort");
head[1].click(); said.up = rows(table);
head[0].click(); said.names = rows(table);
const box = document.getElementById("method");
const type = (text) => { box.value = text; box.dispatchEvent(new Event("input")); };
type("hi"); said.filtered = rows(table); type("");
const choose = document.getElementById("setting");
choose.value = "1"; choose.dispatchEvent(new Event("change"));
said.columns = [...table.querySelectorAll("thead th.sorts")].filter((cell) => !cell.hidden).length;
choose.value = ""; choose.dispatchEvent(new Event("change"));
const cell = [...table.tBodies[0].rows].find((row) => row.cells[0].textContent.trim() === "high").cells[1];
cell.click();
const dialog = document.getElementById("dialog");
said.open = dialog.open; said.title = dialog.querySelector("h2").textContent;
said.seeds = [...dialog.querySelectorAll("h3")].map((one) => one.textContent);
said.curves = dialog.querySelectorAll("polyline").length;
said.links = [...dialog.querySelectorAll("a")].map((one) => one.getAttribute("href"));
said.hash = dialog.textContent.includes("part-0.1-0");
said.config = dialog.querySelector("pre").textContent.includes('"alpha": 0.1');
dialog.querySelector(".close").click(); said.closed = !dialog.open;
cell.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" })); said.keyboard = dialog.open; dialog.close();
said.page = document.title; said.errors = errors;
document.documentElement.dataset.said = JSON.stringify(said);
"""


def browse(page: Path, width: int, tmp_path: Path) -> tuple[dict[str, Any], str]:
    """What STEPS found out on `page` in a window of `width` pixels, and what the browser said on its console."""
    assert CHROMIUM is not None
    trial = page.with_name(f"trial-{width}.html")  # beside it, so that relative links mean the same
    trial.write_text(page.read_text().replace("</body>", f"<script>{{{STEPS}}}</script></body>"))  # a scope of its own
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={width},900",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", trial.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    trial.unlink()
    measures = re.findall(r'data-said="(.*?)"', done.stdout, re.DOTALL)
    assert measures, done.stderr[-2000:]
    return json.loads(text.unescape(measures[0])), done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [1280, 500])  # headless Chromium makes no narrower window
def test_in_a_browser_it_sorts_filters_and_opens_the_runs_of_a_cell(made: Path, tmp_path: Path, width: int) -> None:
    said, console = browse(made / "out" / "index.html", width, tmp_path)
    assert said["errors"] == []
    assert "CONSOLE" not in console
    assert said["page"].endswith("fedbench")  # a label's script did not run
    assert said["width"][0] <= said["width"][1]  # tables scroll by themselves, the page does not
    assert said["options"] == 3  # all, and two settings
    assert said["before"] == [
        "</script><script>document.title='broken'</script> a_b & \\u2028",
        "high",
        "low",
        "lost",
        "ref †",
    ]
    assert said["down"] == ["ref †", "high", said["before"][0], "low", "lost"]  # what has no number stays below
    assert said["aria"] == "descending"
    assert said["up"] == ["low", said["before"][0], "high", "ref †", "lost"]
    assert said["names"] == sorted(said["names"], key=str.lower)
    assert said["filtered"] == ["high"]
    assert said["columns"] == 1 + 2 + 1  # names, one setting's mean and worst, the average rank
    assert said["open"]
    assert said["title"] == "high"
    assert said["seeds"] == ["Seed 0: done", "Seed 1: done"]
    assert said["curves"] == 2
    for link in said["links"]:
        assert (made / "out" / link).is_file()
    assert {"run.yaml", "records.jsonl", "clients.parquet"} == {link.rsplit("/", 1)[1] for link in said["links"]}
    assert said["hash"]
    assert said["config"]
    assert said["closed"]
    assert said["keyboard"]


def test_a_picture_gets_the_class_prior_of_the_first_client(tmp_path: Path) -> None:
    """Client 0 has one image of class 0 and eight of class 1; class 5 is the last that any client has."""
    folder = write_run(tmp_path, clients=True).path
    priors: list[Any] = []

    class Method:
        def picture(self, state: Any, prior: Any) -> dict[str, Any]:
            priors.append(prior.tolist())
            return {name: value for name, value in state.items() if value.ndim == 2}

    prior = [1 / 9, 8 / 9, 0, 0, 0, 0]
    values = {"server.scale": np.array(2.0), "server.prompt": np.ones((2, 3))}
    panels = pictures._panels(Method(), values, folder)
    assert [(name, panel.shape) for name, panel in panels.items()] == [("server.prompt", (2, 3))]
    pictures._panels(Method(), {"server.bias": np.zeros(9), "server.prompt": np.ones((2, 3))}, folder)  # nine classes
    assert priors == [prior, [*prior, 0, 0, 0]]
    Method.picture = lambda self, state, prior: {"x": np.ones(2)}  # type: ignore[method-assign,assignment]
    with pytest.raises(ValueError, match=r"expected matrices \[rows, columns\], found 'x' of shape \(2,\)"):
        pictures._panels(Method(), values, folder)
