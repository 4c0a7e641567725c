"use strict";
// The table of rows: its header with a histogram in each column, its cells. Data reach the page as text alone.

const Table = (() => {
  const text = renderConversation.text;
  const percent = (count, of) => (of ? `${(100 * count / of).toFixed(count / of < 0.1 ? 1 : 0)} %` : "");
  const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

  function make(name, className, content) {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (content !== undefined) element.textContent = content;
    return element;
  }

  function value(found) {
    if (found === null || found === undefined) return make("span", "soft", "–");
    if (typeof found === "number") {
      return make("span", "", Number.isInteger(found) ? found.toLocaleString("en") : String(Number(found.toPrecision(5))));
    }
    return text(String(found), "", " ⏎ ");
  }

  // A histogram is one stop of the Tab key: of its bars, one is in the tab order, and arrow keys go on from there.
  function roving(box, bars) {
    bars.forEach((bar, i) => { bar.tabIndex = i === 0 ? 0 : -1; });
    box.addEventListener("keydown", (event) => {
      const at = bars.indexOf(document.activeElement);
      const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: bars.length - 1 };
      if (at < 0 || !(event.key in to)) return;
      event.preventDefault();
      const next = bars[Math.max(0, Math.min(bars.length - 1, to[event.key]))];
      bars[at].tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }

  function explainBars(box, bars, line, resting) {
    const tell = (event) => {
      const bar = event.target.closest("button");
      line.textContent = bar ? bar.dataset.told : resting;
    };
    for (const kind of ["pointerover", "focusin"]) box.addEventListener(kind, tell);
    for (const kind of ["pointerleave", "focusout"]) box.addEventListener(kind, () => { line.textContent = resting; });
  }

  function drawHistogram(box, column, found, onFilter) {
    const line = make("p", "told");
    const isNumeric = found.of === "lengths" || column.kind === "number" || column.kind === "length";
    const rows = found.bars.filter((bar) => bar.count > 0 || isNumeric);
    const most = Math.max(1, ...rows.map((bar) => bar.count));
    const unit = found.of === "lengths" && column.kind === "text" ? " characters" : "";
    const bars = rows.map((bar) => {
      const button = make("button", "bar");
      button.type = "button";
      const told = `${bar.label}${unit}: ${plural(bar.count, "row")}, ${percent(bar.count, found.rows)}`;
      button.dataset.told = told;
      button.setAttribute("aria-label", `${told}; filter`);
      button.disabled = bar.filter === null;
      const fill = make("span", "fill");
      const share = bar.count / most;
      if (isNumeric) fill.style.height = bar.count ? `max(2px, ${100 * share}%)` : "0";
      else {
        fill.style.width = `${100 * share}%`;
        button.append(text(bar.label, "label", "⏎"), make("span", "share", percent(bar.count, found.rows)));
      }
      button.append(fill);
      button.addEventListener("click", () => onFilter(column.name, bar.filter));
      return button;
    });
    const rest = [];
    if (unit && bars.length) rest.push("length in characters");
    if (found.others) rest.push(`${found.others.toLocaleString("en")} others`);
    if (found.nulls) rest.push(`${percent(found.nulls, found.rows)} empty`);
    if (!bars.length && !rest.length) rest.push("no rows");
    const plot = make("div", isNumeric ? "plot upright" : "plot lying");
    plot.setAttribute("role", "group");
    plot.setAttribute("aria-label", `Histogram of ${column.name}${unit && ", by length"}`);
    plot.append(...bars);
    roving(plot, bars);
    const resting = isNumeric && rows.length
      ? [...new Set([rows[0].label.split(" to ")[0], rows.at(-1).label.split(" to ").at(-1)])].join(" – ") : "";
    explainBars(plot, bars, line, resting);
    line.textContent = resting;
    box.replaceChildren(plot, line, make("p", "rest", rest.join(" · ")));
  }

  function header(column, sort, onSort) {
    const cell = make("th");
    cell.scope = "col";
    cell.abbr = column.name; // what a screen reader says at each cell of the column, not the bars as well
    const down = sort === `-${column.name}`;
    const up = sort === column.name;
    cell.setAttribute("aria-sort", up ? "ascending" : down ? "descending" : "none");
    const button = make("button", "sort");
    button.type = "button";
    button.append(text(column.name), make("span", "mark", up ? " ▲" : down ? " ▼" : ""));
    button.title = `${column.type}; click to sort`;
    button.addEventListener("click", () => onSort(up ? `-${column.name}` : down ? "" : column.name));
    const box = make("div", "histogram");
    box.setAttribute("aria-busy", "true");
    cell.append(button, make("p", "type", column.kind !== "length" ? column.type : column.texts ? `${column.type}; bars: how many` : `length of ${column.type}`), box);
    return { cell, box };
  }

  // Draws a page of rows into `element`, and returns the boxes of the histograms by column.
  function drawTable(element, page, { first, sort, onSort, onOpen, hrefOf }) {
    const table = make("table", "rows");
    const caption = make("caption", "hidden", "Rows; each column's header sorts and has a histogram");
    const head = make("thead");
    const line = make("tr");
    const corner = make("th", "number", "row");
    corner.scope = "col";
    line.append(corner);
    const boxes = new Map();
    for (const column of page.columns) {
      const { cell, box } = header(column, sort, onSort);
      boxes.set(column.name, box);
      line.append(cell);
    }
    head.append(line);
    const body = make("tbody");
    page.rows.forEach((row, i) => {
      const tr = make("tr");
      const number = make("th", "number");
      number.scope = "row";
      const link = make("a", "", (first + i).toLocaleString("en"));
      link.href = hrefOf(row.row);
      link.setAttribute("aria-label", `Open row ${first + i}`);
      link.addEventListener("click", (event) => onOpen(event, row.row));
      number.append(link);
      tr.append(number);
      let at = 0;
      for (const column of page.columns) {
        const found = column.has_cells ? row.cells[at++] : undefined;
        const cell = make("td", column.kind === "number" || typeof found === "number" ? "numeric" : "");
        const shown = make("div", "clip");
        shown.append(column.has_cells ? value(found) : make("span", "soft", "in the row"));
        cell.append(shown);
        tr.append(cell);
      }
      tr.addEventListener("click", (event) => {
        if (!event.target.closest("a") && !String(getSelection())) onOpen(event, row.row);
      });
      body.append(tr);
    });
    table.append(caption, head, body);
    element.replaceChildren(table);
    table.style.setProperty("--number", `${corner.offsetWidth}px`); // where the column that stays begins
    return boxes;
  }

  // Columns by name and rows of values, as a person's query gives them.
  function drawResult(element, result) {
    const table = make("table", "result");
    table.append(make("caption", "hidden", "Result of the query"));
    const line = table.createTHead().insertRow();
    for (const column of result.columns) {
      const cell = make("th");
      cell.scope = "col";
      cell.append(text(column.name));
      cell.title = column.type;
      line.append(cell);
    }
    const body = table.createTBody();
    for (const row of result.rows) {
      const tr = body.insertRow();
      for (const found of row) {
        const cell = tr.insertCell();
        const shown = make("div", "clip");
        shown.append(value(found));
        if (/^U?\w*INT$|^FLOAT$|^DOUBLE$|^DECIMAL/.test(result.columns[tr.cells.length - 1].type)) cell.className = "numeric";
        cell.append(shown);
      }
    }
    element.replaceChildren(table);
    element.hidden = false;
  }

  return { make, plural, drawHistogram, drawTable, drawResult };
})();
