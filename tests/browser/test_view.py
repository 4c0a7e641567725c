"""The viewer's page in a real browser: what people do there, and that other pages can do nothing."""

import http.server
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.pipeline.folder import shard
from stillhouse.pipeline.folder.shard import ShardInfo
from tests.support.command import Command, read
from tests.support.data import ROOT

Opener = Callable[..., Any]
HOSTILE = (
    '<script>document.title = "canary"</script><img src=x onerror="document.title=1"> \x1b[31mred\x07 \u202egnp.exe'
)


@pytest.fixture(scope="module")
def run(finished: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, where one prompt is markup, control characters and an override of direction."""
    folder = tmp_path_factory.mktemp("view") / "run"
    shutil.copytree(finished.run_dir, folder)
    file = min((folder / "screen").glob("*.parquet"))
    rows = pq.read_table(file).to_pylist()
    rows[0]["user_turns"] = [HOSTILE]
    table = pa.Table.from_pylist(rows, schema=pq.read_schema(file))
    file.write_bytes(shard.encode(table, ShardInfo("screen", file.name, "", 0, table.num_rows)))
    return folder


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "stillhouse", "view", str(run), "--no-browser"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        yield next(found[0] for line in process.stderr if (found := re.search(r"http://\S+", line)))
    finally:
        process.terminate()
        process.wait(30)
        if process.stderr is not None:
            process.stderr.close()


@pytest.fixture
def page(open_page: Opener, address: str) -> Any:
    page = open_page(address)
    page.wait_for_selector("table.rows tbody tr")
    return page


def until(page: Any, expression: str) -> None:
    """Waits until JavaScript is true. Playwright's own way is refused by the page's policy, which has no eval."""
    end = time.monotonic() + 60
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


def until_status(page: Any, beginning: str) -> None:
    """Waits until the rows are there and the line about them begins so."""
    status = "document.querySelector('#status').textContent"
    until(page, f"!document.querySelector('#rows[aria-busy]') && {status}.startsWith('{beginning}')")


def texts(page: Any, column: str) -> list[str]:
    """The cells of a column."""
    names = page.eval_on_selector_all("table.rows thead th .sort bdi", "all => all.map(e => e.textContent)")
    number = names.index(column) + 2
    found: list[str] = page.eval_on_selector_all(
        f"table.rows tbody td:nth-child({number})", "all => all.map(e => e.textContent)"
    )
    return found


def test_filters_search_and_the_back_button(page: Any, run: Path) -> None:
    rows = read(run / "dataset/data").to_pylist()
    until_status(page, f"{len(rows)} rows")
    page.fill("#q", "THE")
    page.press("#q", "Enter")
    page.wait_for_url("**q=THE**")
    page.wait_for_selector("#filters .chip")
    wanted = [row["sample_id"] for row in rows if "the" in " ".join(m["content"] for m in row["messages"]).lower()]
    until_status(page, f"{len(wanted)} of")
    assert texts(page, "sample_id") == wanted
    page.click("text=Add a filter")
    page.select_option("#add-column", "num_target_tokens")
    page.fill("#add-from", "20")
    page.click("#add button")
    page.wait_for_url("**c.num_target_tokens=20..**")
    both = [row["sample_id"] for row in rows if row["sample_id"] in wanted and row["num_target_tokens"] >= 20]
    until(page, f"document.querySelectorAll('table.rows tbody tr').length === {len(both)}")
    assert texts(page, "sample_id") == both
    shared = page.url
    page.go_back()
    until_status(page, f"{len(wanted)} of")
    page.go_back()
    until_status(page, f"{len(rows)} rows")
    assert page.input_value("#q") == ""
    page.goto(shared)
    until(page, f"document.querySelectorAll('table.rows tbody tr').length === {len(both)}")
    page.click("#filters >> text=all filters")
    until_status(page, f"{len(rows)} rows")


def test_a_search_in_answers_alone_and_elsewhere_when_nothing_is_found(page: Any, run: Path) -> None:
    rows = read(run / "dataset/data").to_pylist()
    answers = {row["sample_id"]: row["messages"][-1]["content"] for row in rows}
    word = next(word for text in answers.values() for word in text.split() if word.isalpha() and len(word) > 4).lower()
    page.select_option("#where", "answer")
    page.fill("#q", word)
    page.press("#q", "Enter")
    page.wait_for_url("**c.answer=has**")
    wanted = [sample for sample, text in answers.items() if word in text.lower()]
    until_status(page, f"{len(wanted)} ")
    assert texts(page, "sample_id") == wanted
    page.select_option("#where", "")
    page.fill("#q", "zzzz-not-there")
    page.press("#q", "Enter")
    until_status(page, "0 of")
    links = page.eval_on_selector_all("#status a", "all => all.map((link) => link.textContent)")
    assert links == ["ingest", "dedupe", "screen", "generate", "review"]
    page.click("#status a:has-text('screen')")
    page.wait_for_url("**stage=screen&q=zzzz-not-there**")


def test_the_first_column_stays_beside_the_others(page: Any) -> None:
    before = page.locator("table.rows tbody td").first.bounding_box()["x"]
    page.evaluate("document.querySelector('#rows').scrollLeft = 1500")
    page.wait_for_timeout(100)
    assert page.evaluate("document.querySelector('#rows').scrollLeft") > 500
    assert abs(page.locator("table.rows tbody td").first.bounding_box()["x"] - before) < 3


def test_a_bar_filters_by_mouse_and_by_keyboard(page: Any) -> None:
    page.locator("th", has_text="num_target_tokens").scroll_into_view_if_needed()  # histograms that nobody sees wait
    plot = page.locator("th", has_text="num_target_tokens").locator(".plot")
    plot.locator(".bar").first.wait_for()
    bar = plot.locator(".bar:has(.fill:not([style*='height: 0']))").first
    bar.hover()
    told = page.locator("th", has_text="num_target_tokens").locator(".told").inner_text()
    count = re.fullmatch(r"[\d,]+(?: to [\d,]+)?: (\d+) rows?, .+ %", told)
    assert count, told
    bar.click()
    page.wait_for_url("**c.num_target_tokens**")
    until_status(page, f"{count[1]} ")
    page.go_back()
    page.locator("th", has_text="num_target_tokens").locator(".plot .bar").first.focus()
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.nextElementSibling") is None
    assert page.evaluate("document.activeElement.tabIndex") == 0
    page.keyboard.press("Enter")
    page.wait_for_url("**c.num_target_tokens**")


def test_sorting(page: Any, run: Path) -> None:
    numbers = [row["num_input_tokens"] for row in read(run / "dataset/data").to_pylist()]
    for expected in (sorted(numbers), sorted(numbers, reverse=True)):
        page.click("th .sort:has-text('num_input_tokens')")
        page.wait_for_url("**sort=**num_input_tokens**")
        until(page, "document.querySelector('th[aria-sort$=ending]') && !document.querySelector('#rows[aria-busy]')")
        page.wait_for_timeout(100)
        assert [int(text.replace(",", "")) for text in texts(page, "num_input_tokens")] == expected


def test_a_row_has_a_link_and_its_tokens(page: Any, open_page: Opener, run: Path) -> None:
    link = page.locator("table.rows tbody a").nth(1)
    link.click()
    page.wait_for_selector("#conversation .message")
    row = read(run / "dataset/data").to_pylist()[1]
    assert page.inner_text("#row-title bdi") == row["sample_id"]
    page.hover("#conversation .stream [data-supervised='2']")
    page.wait_for_selector("#conversation .panel .bars tr.written")
    shared = page.url
    page.click("#row-next")
    page.locator("#row-title bdi", has_text=read(run / "dataset/data").to_pylist()[2]["sample_id"]).wait_for()
    page.go_back()
    page.locator("#row-title bdi", has_text=row["sample_id"]).wait_for()
    page.keyboard.press("Escape")
    page.wait_for_selector("#list", state="visible")
    page.goto(shared)
    page.locator("#row-title bdi", has_text=row["sample_id"]).wait_for()
    page.click("#row-close")
    page.wait_for_selector("table.rows tbody tr")


def test_sql(page: Any, run: Path) -> None:
    page.click("summary:has-text('SQL')")
    page.fill("#query", "SELECT count(*) AS n FROM generate")
    page.press("#query", "Control+Enter")
    page.wait_for_selector("table.result tbody td")
    assert page.inner_text("table.result tbody td") == str(read(run / "generate").num_rows)
    assert "sql=" in page.url
    page.reload()
    page.wait_for_selector("table.result tbody td")
    for sql, said in (("SELECT * FROM read_text('/etc/passwd')", "disabled"), ("DROP VIEW generate", "only one query")):
        page.fill("#query", sql)
        page.click("#sql button")
        page.locator("#sql-status .failure", has_text=said).wait_for()
        assert page.locator("table.result").is_hidden()


def test_text_is_text(page: Any) -> None:
    page.click("#stages >> text=screen")
    page.wait_for_url("**stage=screen**")
    until(page, "document.querySelector('table.rows th .sort')?.textContent.includes('user_turns')")
    cell = page.locator("table.rows tbody tr").first.locator("td").first
    for place in (cell, page.locator("#conversation .message").first):
        if place is not cell:
            page.locator("table.rows tbody a").first.click()
            place.wait_for()
        shown = place.inner_text()
        assert '<script>document.title = "canary"</script>' in shown
        assert "\x1b" not in shown
        assert "␛" in shown
        assert "\u202e" not in shown
        assert "U+202E" in shown
    assert "canary" not in page.title()
    assert page.locator("main script, main img").count() == 0


def test_the_ledger_leads_to_what_was_said(page: Any) -> None:
    page.click("#stages >> text=ledger")
    page.wait_for_url("**stage=ledger**")
    until(page, "[...document.querySelectorAll('th .sort bdi')].some((name) => name.textContent === 'reason')")
    page.locator("table.rows tbody a").first.click()
    page.wait_for_selector("#elsewhere a")
    assert "reason" in page.inner_text("#conversation")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits(open_page: Opener, address: str, width: int, scheme: str) -> None:
    page = open_page(address, width=width, scheme=scheme)
    page.wait_for_selector(".plot .bar")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colours = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours]
    assert abs(light[0] - light[1]) > 400
    assert (light[1] > light[0]) == (scheme == "light")
    page.locator("table.rows tbody a").first.click()
    page.wait_for_selector("#conversation .message")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


EVIL = """<!doctype html><title>evil</title><iframe src="BASE"></iframe><script>
const text = (response) => response.text();
const sql = { method: "POST", credentials: "include", body: '{"sql": "SELECT 1"}' };
const tries = [
  fetch("BASEapi/place", { credentials: "include" }).then(text),
  fetch("BASEapi/sql", { ...sql, headers: { "Content-Type": "application/json" } }).then(text),
  fetch("BASEapi/sql", { ...sql, mode: "no-cors" }).then(text),
  import("BASEview.js").then(() => "script"),
];
Promise.allSettled(tries).then((all) => { window.result = all.map((one) => one.value ?? "failed"); });
</script>"""


def test_pages_of_others_get_nothing(browser: Any, address: str, tmp_path: Path) -> None:
    """A page of another origin, in a browser that knows the token, can neither read, nor send, nor frame."""
    base = address.partition("?")[0]
    (tmp_path / "evil.html").write_text(EVIL.replace("BASE", base))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("table.rows tbody tr")
        for host in ("127.0.0.1", "localhost"):
            evil = context.new_page()
            refused = list[int]()
            evil.on("response", lambda response, refused=refused: refused.append(response.status))
            evil.goto(f"http://{host}:{server.server_port}/evil.html")
            until(evil, "window.result")
            assert evil.evaluate("window.result") in (["failed"] * 2 + [""] + ["failed"], ["failed"] * 4)
            assert {status for status in refused[1:] if status != 404} <= {403}
            assert 403 in refused
            frame = evil.frames[1]
            assert "Stillhouse" not in frame.content()
        follow = context.new_page()
        follow.goto(f"http://localhost:{server.server_port}/evil.html")
        follow.evaluate(f"location.href = '{base}'")
        follow.wait_for_url(base)
        assert "Refused" in follow.content()
    finally:
        context.close()
        server.shutdown()
        server.server_close()
