"""The report in a real browser: what its reader points at, chooses, moves and types."""

from pathlib import Path
from typing import Any

import pytest

from stillhouse.pipeline.look import report
from tests.browser.conftest import Opener
from tests.support.reports import THRESHOLD, Page, make_run

READY = "html[data-ready]"
TOKENS = "#conversation [data-supervised]"
PANEL = "#conversation .panel"


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    folder = make_run(tmp_path_factory.mktemp("run") / "run")
    report.write(str(folder))
    report.write(str(folder), with_text=False)
    return folder / "report.html"


@pytest.fixture
def page(html: Path, open_page: Opener) -> Any:
    return ready(open_page(html.as_uri()))


def ready(page: Any) -> Any:
    page.wait_for_selector(READY, state="attached")
    return page


def bars(page: Any, column: int) -> list[list[float]]:
    """Middle and height of each bar of a histogram that shows something, from left to right."""
    found: list[list[float]] = page.evaluate(
        """column => {
            const plot = document.querySelector(`[data-column="${column}"] .plot`);
            plot.scrollIntoView({ block: "center" });
            const paths = [...plot.querySelectorAll('path[fill="var(--bar)"]')];
            const shown = paths.map((path) => path.getBoundingClientRect()).filter((bar) => bar.height > 4);
            return shown.map((bar) => [bar.x + bar.width / 2, bar.y + bar.height / 2, bar.height]);
        }""",
        column,
    )
    return found


def test_a_bar_filters_the_other_histograms(page: Any, html: Path) -> None:
    columns = Page.of(html).data["columns"]
    names = [column["name"] for column in columns["columns"]]
    one, other = names.index("num_target_tokens"), names.index("mean surprisal")
    before = bars(page, other)
    x, y, _ = bars(page, one)[0]
    page.mouse.click(x, y)
    page.wait_for_function("document.querySelector('#filter-state').textContent.includes('num_target_tokens')")
    page.wait_for_timeout(300)
    after = bars(page, other)
    assert sum(bar[2] for bar in after) < sum(bar[2] for bar in before)
    # By hand: the first bin that has rows.
    chosen = next(n for n, count in enumerate(columns["columns"][one]["counts"]) if count)
    count = columns["columns"][one]["counts"][chosen]
    state = page.inner_text("#filter-state")
    assert f"{columns['columns'][one]['labels'][chosen]} → {count} of {columns['rows']} rows" in state
    sample = columns["columns"][one]["sample"][:30]
    assert page.inner_text("#chosen-of").startswith(f"{sample.count(chosen)} of {len(sample)} agree")
    page.click("#filter-clear")
    assert "No bar is chosen" in page.inner_text("#filter-state")


def test_a_filter_by_keyboard_counts_what_the_files_have(page: Any, html: Path) -> None:
    columns = Page.of(html).data["columns"]["columns"]
    names = [column["name"] for column in columns]
    one, other = names.index("num_target_tokens"), names.index("mean surprisal")
    page.focus(f'[data-column="{one}"] summary')
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")  # into the box that scrolls, or onto its first button
    while page.evaluate("document.activeElement.tagName") != "BUTTON":
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    buttons = page.locator(f'[data-column="{one}"] .bins button')
    assert buttons.nth(0).get_attribute("aria-pressed") == "true"
    expected = [0] * len(columns[other]["labels"])
    for a, b in zip(columns[one]["sample"], columns[other]["sample"], strict=True):
        expected[b] += a == 0
    cells = page.evaluate(
        """column => [...document.querySelectorAll(`[data-column="${column}"] .bins tr`)]
            .map((row) => row.cells[2].textContent)""",
        other,
    )
    assert cells == [f"{count} shown" for count in expected]


def test_pointing_at_a_token_shows_what_else_there_was(page: Any, html: Path) -> None:
    tokens = Page.of(html).conversations[0]["tokens"]
    page.locator(TOKENS).nth(1).hover()
    text = page.inner_text(PANEL)
    written = [t for t, is_written in zip(tokens["ids"], tokens["supervised"], strict=True) if is_written]
    assert f"id {written[1]} · token 2 of {len(written)}" in text
    for id_, _, _ in tokens["alternatives"][1]:
        assert str(id_) in text
    assert "mass outside of all targets that are stored: 10.0" in text
    assert "of 16 shown" in text
    assert page.locator(f"{PANEL} tr.written").count() == 2


def test_tokens_can_be_reached_and_held_by_keyboard(page: Any) -> None:
    page.locator(TOKENS).nth(0).focus()
    assert "token 1 of" in page.inner_text(PANEL)
    page.keyboard.press("ArrowRight")
    assert "token 2 of" in page.inner_text(PANEL)
    page.keyboard.press("Enter")
    page.keyboard.press("End")
    assert "token 2 of" in page.inner_text(PANEL)
    assert page.locator(f'{TOKENS}[aria-pressed="true"]').count() == 1
    assert page.locator(f'{TOKENS}[tabindex="0"]').count() == 1
    page.keyboard.press("Escape")
    page.keyboard.press("Home")
    assert "token 1 of" in page.inner_text(PANEL)


def test_a_slider_says_what_another_threshold_drops(page: Any, html: Path) -> None:
    curves = Page.of(html).data["curves"]
    number = next(n for n, curve in enumerate(curves) if curve["stage"] == "screen")
    curve, box = curves[number], f'[data-curve="{number}"]'
    assert f"The configured threshold. 0 of the {curve['published'][0]}" in page.inner_text(f"{box} .effect")
    assert page.inner_text(f"{box} .at") == f"{THRESHOLD:.3f}"
    page.focus(f"{box} input")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.inner_text(f"{box} .at") == "0.001"
    assert page.inner_text(f"{box} .effect").startswith(f"{curve['published'][1]} of the {curve['published'][0]}")
    page.keyboard.press("End")
    assert f"{curve['alone'][0]} of the {curve['alone'][0]} that were dropped" in page.inner_text(f"{box} .effect")


def test_text_of_strangers_stays_text(page: Any, html: Path) -> None:
    number = next(n for n, one in enumerate(Page.of(html).conversations) if "copy-0" in one["sample_id"])
    page.click(f'#conversation-list [data-conversation="{number}"]')
    assert "You are a helpful AI" in page.locator("#conversation .message.other").first.inner_text()  # the template's
    text = page.locator("#conversation .message.other").nth(1).inner_text()
    assert "</script><script>document.title='canary'</script> <img src=x onerror=alert(1)>" in text
    assert "⟨U+202E⟩gnirts⟨U+202C⟩ ␇" in text
    assert page.title().startswith("Report:")
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_can_be_read(html: Path, open_page: Opener, width: int, scheme: str) -> None:
    page = ready(open_page(html.as_uri(), width=width, height=844, scheme=scheme))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.locator("#short .lead").bounding_box()
    assert box["y"] + box["height"] < 844  # rows, reasons and verdict are on the first screen
    lead = page.inner_text("#short .lead")
    assert "source rows became" in lead
    assert "Targets:" in lead
    faint = page.evaluate(CONTRASTS)
    assert faint == []
    assert page.evaluate(CROWDED) == []


CROWDED = """() => {
    // Cells of a row whose texts touch, and texts that end outside of their table.
    const texts = (cell) => {
        const range = document.createRange();
        range.selectNodeContents(cell);
        return [...range.getClientRects()].filter((rect) => rect.width > 0);
    };
    const meet = (low, high, gap) => low[0] < high[1] + gap && high[0] < low[1] + gap;
    const beside = (a, b) => meet([a.top, a.bottom], [b.top, b.bottom], -2);
    const touch = (a, b) => beside(a, b) && meet([a.left, a.right], [b.left, b.right], 4);
    const found = new Set();
    for (const row of document.querySelectorAll(".scroll tr")) {
        const cells = [...row.children].map(texts);
        const right = row.closest(".scroll").getBoundingClientRect().right + 1;
        cells.forEach((one, i) => {
            if (one.some((a) => a.right > right)) found.add(`outside: ${row.textContent}`);
            if (cells.slice(i + 1).flat().some((b) => one.some((a) => touch(a, b)))) found.add(row.textContent);
        });
    }
    return [...found];
}"""


CONTRASTS = """() => {
    // WCAG's ratio of each text to the background behind it, where it is below 4.5.
    const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) => [r, g, b].map((v) => linear(v / 255))
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const colour = parts(getComputedStyle(at).backgroundColor);
            if (colour.length < 4 || colour[3] > 0) return colour;
        }
        return [255, 255, 255];
    };
    const found = new Set();
    for (const element of document.querySelectorAll("main *, header *, footer *")) {
        if (element.closest("svg, button, meter, select") || !element.checkVisibility()) continue;
        if (![...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())) continue;
        const [a, b] = [light(parts(getComputedStyle(element).color)), light(behind(element))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) found.add(`${element.tagName}.${element.className}: ${ratio.toFixed(2)}`);
    }
    return [...found];
}"""


def test_screen_readers_find_their_way(page: Any) -> None:
    found = page.evaluate("""() => {
        const all = (selector) => [...document.querySelectorAll(selector)];
        const name = (plot) => plot.ariaLabel ?? plot.querySelector("[aria-label]")?.ariaLabel ?? "";
        return {
            landmarks: ["header", "nav", "main", "footer"].map((tag) => all(tag).length),
            levels: all("h1, h2, h3").map((heading) => Number(heading.tagName[1])),
            uncaptioned: all("table:not(:has(caption)):not(.columns table)").length,
            undescribed: all(".plot").filter((plot) => name(plot).length < 20).length,
            plots: all(".plot svg").length,
            unnamed: all("button, input").filter((e) => !e.textContent.trim() && !e.labels?.length).length,
            language: document.documentElement.lang,
        };
    }""")
    assert found["landmarks"] == [1, 1, 1, 1]
    assert found["levels"][0] == 1
    assert all(b - a <= 1 for a, b in zip(found["levels"], found["levels"][1:], strict=False))
    assert found["uncaptioned"] == found["undescribed"] == found["unnamed"] == 0
    assert found["plots"] > 8
    assert found["language"] == "en"


def test_without_text_it_works_as_well(html: Path, open_page: Opener) -> None:
    page = ready(open_page(html.with_name("report-no-text.html").as_uri()))
    assert "may be passed on" in page.inner_text("#conversations")
    x, y, _ = bars(page, 0)[0]
    page.mouse.click(x, y)
    assert "→" in page.inner_text("#filter-state")
