"""The page of a sample set: its data, and its behaviour in a browser."""

import json
import re

import chromium
import numpy as np
import pytest

from dfm_jax.evaluation.report.page import histories, render_page

# Two samples of three positions over four frames; token 9 is the mask, 8 the end of text.
FRAMES = np.asarray([[[9, 9, 1], [9, 9, 9]], [[9, 0, 1], [9, 9, 2]], [[3, 0, 1], [9, 8, 2]], [[3, 4, 1], [5, 8, 2]]])
TOKENS = ["zero", "one", "two", "</script><b>3", "fo\nur", "five", "?", "?", "<|endoftext|>"]


def render() -> str:
    fixed = np.zeros((2, 3), bool)
    fixed[0, 2] = True
    return render_page(
        FRAMES,
        [0.0, 0.25, 0.5, 1.0],
        [0, 2, 4, 8],
        show=TOKENS.__getitem__,
        title="a <run>",
        settings={"method": "exact", "steps": 8},
        mask_id=9,
        eos_id=8,
        fixed=fixed,
    )


def test_histories_hold_the_changes_only():
    assert histories(FRAMES[:, 0]) == [[(0, 9), (2, 3)], [(0, 9), (1, 0), (3, 4)], [(0, 1)]]


def test_page_holds_every_state_and_refers_to_nothing_outside():
    page = render()
    assert not re.search(r"https?:|src=|@import|url\(", page)
    assert "<title>a &lt;run&gt;</title>" in page
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    tokens = data["tokens"]
    for n, sample in enumerate(data["samples"]):
        for i, flat in enumerate(sample["history"]):
            entries = list(zip(flat[::2], flat[1::2], strict=True))
            for f in range(4):
                shown = tokens[[token for at, token in entries if at <= f][-1]]
                assert shown == ([*TOKENS, "\u2591"][FRAMES[f, n, i]])
    assert data["samples"][0]["fixed"] == [2]
    assert tokens[data["mask"]] == "\u2591" and tokens[data["end"]] == "<|endoftext|>"


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one per frame"):
        render_page(FRAMES, [0.0], [0], show=str, title="", settings={})


LOOK = "[...document.querySelectorAll('#text span')].map(s => s.className + '|' + s.textContent)"


@pytest.mark.slow
@pytest.mark.browser
def test_slider_keys_and_player_in_chromium(tmp_path):
    browser = chromium.find_browser()
    if browser is None:
        pytest.skip("no chromium: apt-get install chromium")
    file = tmp_path / "page.html"
    file.write_text(render(), encoding="utf-8")
    with chromium.Page(browser, file.as_uri(), tmp_path / "profile") as page:
        assert page.run(LOOK) == ["touched|</script><b>3", "touched|fo\nur", "fixed|one"]
        page.run("slider = document.getElementById('time'); slider.value = 1; slider.dispatchEvent(new Event('input'))")
        assert page.run(LOOK) == ["mask|\u2591", "touched fresh|zero", "fixed|one"]
        page.run("press = key => document.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}))")
        page.run("press('ArrowRight')")
        assert page.run(LOOK) == ["touched fresh|</script><b>3", "touched|zero", "fixed|one"]
        page.run("document.querySelectorAll('#samples button')[1].click()")
        assert page.run(LOOK) == ["mask|\u2591", "touched fresh end|end", "touched|two"]
        page.run("document.getElementById('speed').value = '4'; press('Home')")
        assert page.run("slider.value") == "0"
        page.run("press(' ')")
        page.wait_for("slider.value === '3' && document.getElementById('play').ariaLabel === 'play'")
        assert page.run(LOOK) == ["touched|five", "touched end|end", "touched|two"]
        now = page.run("document.getElementById('now').textContent")
        assert "t = 1.000" in now and "100 %" in now
        page.screenshot(tmp_path / "page.png")
        assert page.complaints == []
    assert (tmp_path / "page.png").stat().st_size > 10_000
