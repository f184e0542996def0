"""The page of a run, from its files alone."""

import json
import pathlib
import re
import shutil
import xml.etree.ElementTree as ET

import chromium
import pytest

from dfm_jax.evaluation import baselines
from dfm_jax.evaluation.report import charts, run_page

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "run_v01" / "runs" / "old"


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "a <run>"
    shutil.copytree(FIXTURE, folder)
    (folder / "samples").mkdir(exist_ok=True)
    line = {"index": 0, "text": "<b>a text</b> __STATE__", "settings": {"method": "exact", "prompt": "It was"}}
    (folder / "samples" / "step_10.jsonl").write_text(json.dumps(line) + "\n")
    (folder / "samples" / "step_10.html").write_text('<html><p class="x">"plays"</p></html>')
    baselines.keep(folder, {"a": baselines.Baselines(3.3, 2.5, 3.1, 100, 200, 1.0)})
    run_page.keep_facts(folder, {"devices": "1 x cpu"})
    return folder


def test_it_says_what_is_in_the_folder(run):
    assert run_page.write(run) == run / "index.html"
    page = (run / "index.html").read_text(encoding="utf-8")
    words = ("finished, 10 steps", "bigram 2.500", "2.5000", "&lt;b&gt;a text&lt;/b&gt; __STATE__", "prompt “It was”")
    words += ("optim.lr", "1 x cpu", "--mode=sample", "tokens a second", "nats a token", "a &lt;run&gt;")
    for part in words:
        assert part in page, part
    assert 'srcdoc="&lt;html&gt;&lt;p class=&quot;x&quot;' in page
    # Nothing is fetched from anywhere.
    assert not re.search(r"""(?:src|href)=["'](?!data:)|https?://|@import|url\(""", page)


def test_a_run_that_has_just_begun_has_one(run):
    for name in ("metrics.jsonl", "run.json", "eval", "samples"):
        path = run / name
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
    page = run_page.render(run)
    assert "step 0 of 10" in page and "No step has been logged yet" in page


def test_it_is_written_at_most_so_often(run, monkeypatch):
    written = []
    monkeypatch.setattr(run_page, "write", written.append)
    page = run_page.RunPage(run)
    for _ in range(5):
        page()
    assert len(written) == 1
    page(now=True)
    assert len(written) == 2


def test_what_cannot_be_read_is_said_and_costs_nothing_else(tmp_path, capsys):
    assert run_page.write(tmp_path) is None
    assert "index.html: not written" in capsys.readouterr().err


def test_a_chart_has_every_series_its_legend_and_its_units():
    points = [(step, 5.0 - step / 100) for step in range(0, 300, 3)]
    svg = charts.chart(
        "Loss", "nats a token",
        {"training": charts.Series(points, smoothed=True), "validation": charts.Series(points[::20], dots=True)},
        rules={"bigram": 2.5}, last=300,
    )  # fmt: skip
    tree = ET.fromstring(svg)
    words = " ".join(text for text in tree.itertext())
    assert "Loss, nats a token" in words and "bigram 2.500" in words and "training 2" in words and "step" in words
    lines = list(tree.iter("polyline"))
    assert len(lines) == 3 and len(list(tree.iter("circle"))) == 5
    x, y = lines[1].attrib["points"].split()[-1].split(",")
    assert float(x) == pytest.approx(charts.LEFT + (charts.WIDTH - charts.LEFT - charts.RIGHT) * 297 / 300, abs=0.1)
    assert charts.TOP <= float(y) <= charts.HEIGHT - charts.BOTTOM
    assert charts.chart("Loss", "", {"none": charts.Series([])}) == ""


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2.31, 2.32), (0, 1e6), (-3, 5)])
def test_ticks_are_round_and_few(low, high):
    ticks = charts._ticks(low, high)
    assert 2 <= len(ticks) <= 7 and low <= min(ticks) and max(ticks) <= high + 1e-9


WIDER = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.wide') || e.className === 'wide')
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
LOW = "document.querySelector('.say pre').getBoundingClientRect().top"


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1400])
def test_it_is_legible_wide_and_narrow_light_and_dark_in_chromium(run, tmp_path, width):
    browser = chromium.find_browser()
    if browser is None:
        pytest.skip("no chromium: apt-get install chromium")
    player = "<body><p id=state>still</p><script>state.textContent = 'plays'; parent.postMessage('plays', '*')</script>"
    (run / "samples" / "step_10.html").write_text(player)
    metrics = [{"step": step, "train/loss": 5 / step, "train/step_time": 0.1} for step in range(1, 11)]
    metrics += [{"step": step, "eval/loss": 5 / step, "eval/perplexity": 9.0} for step in (4, 8)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    run_page.write(run)
    with chromium.Page(browser, (run / "index.html").as_uri(), tmp_path / "profile") as page:
        page.look(width)
        assert page.run(WIDER) == [] and page.run("document.documentElement.scrollWidth <= innerWidth")
        # What the run is, its curve, its costs, a sample and the command come first, and the sample is on the screen.
        order = "[...document.querySelectorAll('h1, figure.large, .costs, .first pre, .say pre')]"
        names = page.run(f"{order}.map(e => e.className || e.parentNode.className || e.tagName).slice(0, 5).join(' ')")
        assert names == "H1 large costs first say"
        tops = page.run(f"{order}.slice(0, 5).map(e => e.getBoundingClientRect().top)")
        assert tops == sorted(tops)
        if width == 1400:
            assert page.run(LOW) < 900
        # No letters are smaller than 9 pixels.
        small = page.run(
            "[...document.querySelectorAll('svg text')].filter(e => e.getBoundingClientRect().height < 9).length"
        )
        assert small == 0
        light = page.run("getComputedStyle(document.body).backgroundColor")
        page.look(width, dark=True)
        dark = page.run("getComputedStyle(document.body).backgroundColor")
        assert sum(map(int, re.findall(r"\d+", light))) > 600 > 150 > sum(map(int, re.findall(r"\d+", dark)))
        page.run("addEventListener('message', event => { heard = event.data })")
        page.run("heard = ''; document.querySelector('iframe').scrollIntoView()")
        page.run("frame = document.querySelector('iframe'); frame.srcdoc = frame.srcdoc")
        page.wait_for("heard === 'plays'")
        assert page.complaints == [] and page.fetched == []
