"use strict";
// The page of a report: plots, histograms that filter each other, sliders of thresholds, conversations.
(() => {
  const { columns, curves, specs } = JSON.parse(document.getElementById("data").textContent);
  const count = new Intl.NumberFormat("en");
  const rounded = (value) => count.format(Math.round(value));

  // -------------------------------------------------------------------------------------------------------------------
  // Plots

  const tip = document.getElementById("tip");
  // Texts of data never become markup: vega-tooltip would make some.
  function tooltip(handler, event, item, value) {
    const text = value === null || value === undefined ? "" : String(value.note ?? value.tooltip ?? Object.values(value)[0] ?? "");
    tip.hidden = text === "";
    tip.textContent = text;
    tip.style.insetInlineStart = `${Math.min(event.clientX + 12, innerWidth - 180)}px`;
    tip.style.insetBlockStart = `${event.clientY + 14}px`;
  }

  async function draw(element) {
    const options = { actions: false, ast: true, defaultStyle: false, renderer: "svg", tooltip };
    const { view } = await vegaEmbed(element, specs[Number(element.dataset.plot)], options);
    return view;
  }

  // -------------------------------------------------------------------------------------------------------------------
  // Histograms: `chosen` has the bins of each column that rows must be in; an empty set allows all.

  const chosen = columns.columns.map(() => new Set());
  const views = [];
  const scale = columns.sample ? columns.rows / columns.sample : 0;
  const isWhole = columns.sample === columns.rows;

  // By column, how many rows of the sample are in each bin and agree with what is chosen in the others.
  function counted() {
    const found = columns.columns.map((column) => new Array(column.labels.length).fill(0));
    let numAgreeing = 0;
    for (let row = 0; row < columns.sample; row += 1) {
      let failed = -1;
      let numFailed = 0;
      chosen.forEach((bins, c) => {
        if (bins.size && !bins.has(columns.columns[c].sample[row])) {
          failed = c;
          numFailed += 1;
        }
      });
      if (numFailed > 1) continue;
      if (numFailed === 0) numAgreeing += 1;
      columns.columns.forEach((column, c) => {
        if (numFailed === 0 || failed === c) found[c][column.sample[row]] += 1;
      });
    }
    return [found, numAgreeing];
  }

  function update() {
    const [found, numAgreeing] = counted();
    const isFiltered = chosen.some((bins) => bins.size);
    const about = isWhole ? "" : "about ";
    columns.columns.forEach((column, c) => {
      const bars = column.labels.map((label, bin) => {
        const isIn = !chosen[c].size || chosen[c].has(bin);
        const inOthers = isFiltered ? found[c][bin] * scale : column.counts[bin];
        const shown = isIn ? Math.min(inOthers, column.counts[bin]) : 0;
        const of = isFiltered ? `${about}${rounded(isIn ? inOthers : 0)} of ` : "";
        return { bin, label, all: column.counts[bin], shown, note: `${label}: ${of}${count.format(column.counts[bin])} rows` };
      });
      views[c]?.data("bars", bars).runAsync();
      table(c, bars, isFiltered);
    });
    const state = document.getElementById("filter-state");
    const parts = columns.columns
      .map((column, c) => (chosen[c].size ? `${column.name}: ${[...chosen[c]].sort((a, b) => a - b).map((bin) => column.labels[bin]).join(" or ")}` : ""))
      .filter(Boolean);
    const exact = isWhole
      ? `${count.format(numAgreeing)} of ${count.format(columns.rows)} rows`
      : `${count.format(numAgreeing)} of ${count.format(columns.sample)} sampled rows, about ${rounded(numAgreeing * scale)} of ${count.format(columns.rows)}`;
    state.textContent = isFiltered ? `${parts.join("; ")} → ${exact}` : "No bar is chosen: all rows are shown.";
    document.getElementById("filter-clear").hidden = !isFiltered;
    list?.();
  }

  function toggle(c, bin) {
    if (!chosen[c].delete(bin)) chosen[c].add(bin);
    update();
  }

  // The same bars as a table whose buttons choose them.
  function table(c, bars, isFiltered) {
    const place = document.querySelector(`[data-column="${c}"] .bins`);
    if (!place.firstChild) {
      const made = document.createElement("table");
      made.className = "plain";
      made.createCaption().textContent = `Rows by ${columns.columns[c].name}`;
      for (const { bin } of bars) {
        const row = made.insertRow();
        const button = document.createElement("button");
        button.type = "button";
        button.addEventListener("click", () => toggle(c, bin));
        const header = document.createElement("th");
        header.scope = "row";
        header.append(button);
        row.append(header);
        row.insertCell().className = "number";
        row.insertCell().className = "number";
      }
      place.append(made);
    }
    bars.forEach(({ bin, label, all, shown }, n) => {
      const row = place.firstChild.rows[n];
      const button = row.cells[0].firstChild;
      button.textContent = label;
      button.setAttribute("aria-pressed", String(chosen[c].has(bin)));
      row.cells[1].textContent = count.format(all);
      row.cells[2].textContent = isFiltered ? `${rounded(shown)} shown` : "";
    });
  }

  document.getElementById("filter-clear").addEventListener("click", () => {
    chosen.forEach((bins) => bins.clear());
    update();
    document.getElementById("columns-title").scrollIntoView();
  });

  // -------------------------------------------------------------------------------------------------------------------
  // Thresholds

  function sentence(curve, n) {
    const used = curve.threshold === null ? null : curve.grid.findIndex((value) => value >= curve.threshold - 1e-6);
    const at = (counts, from) => (from === null ? 0 : counts[from] ?? 0);
    const lost = at(curve.published, n);
    const share = columns.rows ? (100 * lost) / columns.rows : 0;
    const parts = n === used ? ["The configured threshold."] : [];
    parts.push(`${count.format(lost)} of the ${count.format(columns.rows)} published rows (${share.toFixed(share < 1 ? 2 : 1)} %) have this score or more and would be dropped.`);
    if (curve.passed !== null) {
      const more = at(curve.passed, n);
      const back = used === null ? 0 : at(curve.alone, 0) - at(curve.alone, n);
      const now = at(curve.alone, 0);
      const what = curve.stage === "screen" ? "prompts" : "answers";
      parts.push(`Of all ${what} that ${curve.stage} let pass, ${count.format(more)} would be dropped.`);
      if (now) parts.push(`${curve.stage === "screen" ? "" : "Up to "}${count.format(back)} of the ${count.format(now)} that were dropped for this score alone would stay.`);
    }
    return parts.join(" ");
  }

  async function threshold(box) {
    const curve = curves[Number(box.dataset.curve)];
    const slider = box.querySelector("input");
    const view = await draw(box.querySelector(".plot"));
    const nearest = curve.grid.findIndex((value) => value >= (curve.threshold ?? 0.5) - 1e-6);
    slider.value = String(nearest);
    const show = () => {
      const n = Number(slider.value);
      const text = curve.grid[n].toFixed(3);
      box.querySelector(".at").textContent = text;
      slider.setAttribute("aria-valuetext", text);
      box.querySelector(".effect").textContent = sentence(curve, n);
      const rules = [{ at: curve.grid[n], kind: "slider" }];
      if (curve.threshold !== null) rules.push({ at: curve.threshold, kind: "configured" });
      view.data("rules", rules).runAsync();
    };
    slider.addEventListener("input", show);
    show();
  }

  // -------------------------------------------------------------------------------------------------------------------
  // Conversations: each is parsed when it is shown first.

  const sources = [...document.querySelectorAll(".conversation-data")];
  const parsed = new Map();
  const conversation = (n) => {
    if (!parsed.has(n)) parsed.set(n, JSON.parse(sources[n].textContent));
    return parsed.get(n);
  };
  let current = -1;

  function open(n) {
    current = n;
    const shown = conversation(n);
    document.getElementById("conversation-title").textContent = shown.sample_id;
    const cut = document.getElementById("conversation-cut");
    cut.hidden = !shown.cut;
    cut.textContent = shown.cut ? `Shortened: ${shown.cut}.` : "";
    renderConversation(document.getElementById("conversation"), shown);
    for (const button of document.querySelectorAll("#conversation-list button")) {
      button.setAttribute("aria-current", String(Number(button.dataset.conversation) === n));
    }
  }

  // Those that agree with what is chosen in the histograms: the conversations are the first rows of their sample.
  const list = sources.length
    ? () => {
        const place = document.getElementById("conversation-list");
        const agreeing = sources.map((_, n) => n).filter((n) => chosen.every((bins, c) => !bins.size || bins.has(columns.columns[c].sample[n])));
        place.replaceChildren();
        for (const n of agreeing) {
          const { messages, tokens } = conversation(n);
          const said = messages.find((message) => message.role === "user")?.content ?? "";
          const button = document.createElement("button");
          button.type = "button";
          button.dataset.conversation = String(n);
          const text = document.createElement("bdi");
          text.dir = "auto";
          text.textContent = said.slice(0, 90).replace(/[\p{C}\s]+/gu, " ") || "(empty)";
          const facts = document.createElement("span");
          facts.className = "soft";
          facts.textContent = `${count.format(tokens.logprobs.length)} tokens of the teacher's`;
          button.append(text, facts);
          button.addEventListener("click", () => open(n));
          const item = document.createElement("li");
          item.append(button);
          place.append(item);
        }
        document.getElementById("chosen-of").textContent =
          agreeing.length === sources.length ? `${sources.length} conversations` : `${agreeing.length} of ${sources.length} agree with the bars chosen above`;
        if (agreeing.length && !agreeing.includes(current)) open(agreeing[0]);
        else if (agreeing.length) open(current);
      }
    : undefined;

  async function start() {
    for (const box of document.querySelectorAll("[data-column]")) {
      const c = Number(box.dataset.column);
      views[c] = await draw(box.querySelector(".plot"));
      views[c].addEventListener("click", (event, item) => {
        if (item?.datum?.bin !== undefined) toggle(c, item.datum.bin);
      });
    }
    update();
    for (const box of document.querySelectorAll("[data-curve]")) await threshold(box);
    for (const element of document.querySelectorAll("figure .plot")) await draw(element);
    document.documentElement.dataset.ready = "true";
  }
  start();
})();
