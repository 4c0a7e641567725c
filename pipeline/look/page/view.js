"use strict";
// The page of `stillhouse view`. What it shows is what its address says (see pipeline/look/view/queries.py); everything
// that a person does changes the address, and the address is drawn.

(() => {
  const $ = (id) => document.getElementById(id);
  const { make, plural } = Table;
  let place = null;
  let columns = [];
  let shown = { rows: "", row: null, addresses: [] };
  let loading = new AbortController();

  // ---- the address

  function readAddress() {
    const parameters = new URLSearchParams(location.search);
    const state = { stage: "", q: "", sort: "", page: 1, row: "", sql: "", filters: [] };
    for (const [name, value] of parameters) {
      if (name.startsWith("c.")) state.filters.push([name.slice(2), value]);
      else if (name === "page") state.page = Math.max(1, parseInt(value, 10) || 1);
      else if (name in state) state[name] = value;
    }
    if (!place.stages.some((stage) => stage.name === state.stage)) state.stage = place.stages.at(-1).name;
    if (place.stages.at(-1).name === "ledger" && !parameters.has("stage") && place.stages.length > 1) {
      state.stage = place.stages.at(-2).name;
    }
    return state;
  }

  function asked(state) {
    const parameters = new URLSearchParams({ stage: state.stage });
    if (state.q) parameters.append("q", state.q);
    for (const [name, value] of state.filters) parameters.append(`c.${name}`, value);
    return parameters;
  }

  function address(state) {
    const parameters = asked(state);
    if (state.sort) parameters.append("sort", state.sort);
    if (state.page > 1) parameters.append("page", state.page);
    if (state.row) parameters.append("row", state.row);
    if (state.sql) parameters.append("sql", state.sql);
    return `/?${parameters}`;
  }

  function go(changes) {
    const state = { ...readAddress(), ...changes };
    if (address(state) !== location.pathname + location.search) history.pushState(null, "", address(state));
    draw();
  }

  async function ask(path, parameters, options) {
    const response = await fetch(`${path}?${parameters}`, options);
    const isJSON = response.headers.get("content-type")?.startsWith("application/json");
    const answer = isJSON ? await response.json() : { error: await response.text() };
    if (answer.error) throw new Error(answer.error);
    return answer;
  }

  function failed(error) {
    if (error.name === "AbortError") return;
    const told = error instanceof TypeError ? "no answer: has `stillhouse view` ended?" : error.message;
    $("status").replaceChildren(make("strong", "", "Failed: "), renderConversation.text(told));
  }

  // ---- stages, filters

  function linkTo(text, there) {
    const link = make("a", "", text);
    link.href = address(there);
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      go(there);
    });
    return link;
  }

  function drawStages(state) {
    $("stages").replaceChildren(...place.stages.map((stage) => {
      const item = make("li");
      const link = linkTo(stage.name, { stage: stage.name, q: "", sort: "", page: 1, row: "", sql: state.sql, filters: [] });
      link.title = `${plural(stage.files, "file")}, ${(stage.bytes / 1e6).toFixed(1)} MB`;
      if (stage.name === state.stage) link.setAttribute("aria-current", "page");
      item.append(link);
      return item;
    }));
  }

  function drawFilters(state) {
    const chips = state.filters.map(([name, value], i) => [`${name} ${Filters.inWords(value)}`, { filters: state.filters.toSpliced(i, 1), page: 1 }]);
    if (state.q) chips.unshift([`prompts and answers contain “${state.q}”`, { q: "", page: 1 }]);
    if (chips.length > 1) chips.push(["all filters", { q: "", filters: [], page: 1 }]);
    $("filters").replaceChildren(...chips.map(([told, changes]) => {
      const item = make("li");
      const button = make("button", "chip");
      button.type = "button";
      button.append(renderConversation.text(told), make("span", "cross", " ✕"));
      button.setAttribute("aria-label", `Remove: ${told}`);
      button.addEventListener("click", () => { go(changes); $("status").focus?.(); });
      item.append(button);
      return item;
    }));
  }

  function filter(name, value) {
    const state = readAddress();
    if (value === null || state.filters.some(([n, v]) => n === name && v === value)) return;
    go({ filters: [...state.filters, [name, value]], page: 1, row: "" });
  }

  // ---- rows and histograms

  async function drawRows(state) {
    const signature = `${asked(state)}&${state.sort}&${state.page}`;
    if (signature === shown.rows) return;
    loading.abort();
    loading = new AbortController();
    const { signal } = loading;
    $("rows").setAttribute("aria-busy", "true");
    $("status").textContent = "Looking …";
    const parameters = asked(state);
    parameters.append("page", state.page);
    if (state.sort) parameters.append("sort", state.sort);
    let page;
    try {
      page = await ask("/api/rows", parameters, { signal });
    } catch (error) {
      if (error.name === "AbortError") return;
      failed(error);
      $("rows").replaceChildren();
      $("rows").removeAttribute("aria-busy");
      shown.rows = "";
      return;
    }
    shown = { rows: signature, row: shown.row, addresses: page.rows.map((row) => row.row) };
    columns = page.columns;
    $("rows").removeAttribute("aria-busy");
    const all = page.total === page.of;
    $("status").textContent = `${all ? plural(page.of, "row") : `${page.total.toLocaleString("en")} of ${plural(page.of, "row")}`} (${page.seconds.toFixed(2)} s)`;
    const pages = Math.max(1, Math.ceil(page.total / place.page));
    $("page").value = state.page;
    $("pages").textContent = `of ${pages.toLocaleString("en")}`;
    $("previous").disabled = state.page <= 1;
    $("next").disabled = state.page >= pages;
    Filters.offer(columns);
    $("search").hidden = !columns.some((column) => column.texts);
    $("where").hidden = !columns.some((column) => column.name === "answer");
    if ($("where").hidden) $("where").value = "";
    if (!page.total && (state.q || state.filters.length)) offerOthers(state);
    const boxes = Table.drawTable($("rows"), page, {
      first: (state.page - 1) * place.page + 1,
      sort: state.sort,
      onSort: (sort) => go({ sort, page: 1 }),
      onOpen: (event, row) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        go({ row });
      },
      hrefOf: (row) => address({ ...state, row }),
    });
    fillHistograms(boxes, asked(state), signal);
  }

  // Nothing was found: the same search elsewhere, and nothing of filters whose columns others may not have.
  function offerOthers(state) {
    const others = place.stages.filter((stage) => stage.name !== state.stage && (!state.q || stage.name !== "ledger"));
    if (!others.length) return;
    $("status").append(state.q ? "; search in:" : "; other stages:");
    for (const stage of others) {
      $("status").append(" ", linkTo(stage.name, { stage: stage.name, q: state.q, sort: "", page: 1, row: "", sql: state.sql, filters: [] }));
    }
  }

  // One after the other and only those that come into view: each reads its column of all rows. Texts take longest.
  function fillHistograms(boxes, parameters, signal) {
    const byName = new Map(columns.map((column) => [column.name, column]));
    const names = new Map([...boxes].map(([name, box]) => [box, name]));
    const waiting = [];
    let busy = false;
    async function work() {
      if (busy) return;
      busy = true;
      while (waiting.length && !signal.aborted) await fill(waiting.shift());
      busy = false;
    }
    async function fill(box) {
      const name = names.get(box);
      const wanted = new URLSearchParams(parameters);
      wanted.append("column", name);
      try {
        Table.drawHistogram(box, byName.get(name), await ask("/api/histogram", wanted, { signal }), filter);
      } catch (error) {
        if (error.name !== "AbortError") box.replaceChildren(make("p", "rest", error.message));
      }
      box.removeAttribute("aria-busy");
    }
    const seen = new IntersectionObserver((entries) => {
      for (const entry of entries.filter((one) => one.isIntersecting)) {
        seen.unobserve(entry.target);
        waiting.push(entry.target);
      }
      waiting.sort((a, b) => byName.get(names.get(a)).texts - byName.get(names.get(b)).texts);
      work();
    }, { rootMargin: "200px" });
    for (const [box, name] of names) {
      if (!byName.get(name).heavy) {
        seen.observe(box);
        continue;
      }
      const button = make("button", "", "Count lengths");
      button.type = "button";
      button.title = "reads all of this column, which may take long";
      button.addEventListener("click", () => { waiting.push(box); work(); });
      box.replaceChildren(button);
      box.removeAttribute("aria-busy");
    }
    signal.addEventListener("abort", () => seen.disconnect());
  }

  // ---- one row

  async function drawRow(state) {
    const signature = state.row && `${state.stage}&${state.row}`;
    $("list").hidden = Boolean(state.row);
    $("row").hidden = !state.row;
    if (signature === shown.row) return;
    const before = shown.row;
    shown.row = signature;
    if (!state.row) {
      if (before) $("rows").querySelector(`a[href$="${CSS.escape(before.split("&")[1])}"]`)?.focus();
      return;
    }
    $("row-title").textContent = "Looking …";
    $("conversation").replaceChildren();
    $("lists").replaceChildren();
    $("row-note").textContent = "";
    $("elsewhere").replaceChildren();
    try {
      const row = await ask("/api/row", new URLSearchParams({ stage: state.stage, row: state.row }));
      if (shown.row !== signature) return;
      $("row-title").replaceChildren(renderConversation.text(row.sample_id ?? row.prompt_id ?? state.row), make("span", "soft", ` ${state.stage}, ${state.row}`));
      $("row-note").textContent = row.note ?? "";
      drawElsewhere(state, row.columns.source_row);
      renderConversation($("conversation"), row);
      if (!row.messages.length || !row.tokens.ids.length) $("conversation").querySelector("details").open = true;
      $("lists").replaceChildren(...row.lists.map((list) => {
        const line = make("p");
        line.append(make("strong", "", list.name), ` ${plural(list.length, "value")}: `, renderConversation.text(list.begin));
        return line;
      }));
    } catch (error) {
      $("row-title").textContent = "This row cannot be shown";
      $("row-note").textContent = error.message;
    }
    $("row-title").focus();
    drawNeighbours(state);
  }

  // Where else the prompt is: of a row of the ledger, what it said.
  function drawElsewhere(state, sourceRow) {
    if (sourceRow === undefined || sourceRow === null) return;
    // What was published was not dropped.
    const others = place.stages.filter((stage) => stage.name !== state.stage && !(state.stage === "published" && stage.name === "ledger"));
    if (!others.length) return;
    $("elsewhere").append("The same source row in:");
    for (const stage of others) {
      const there = { stage: stage.name, q: "", sort: "", page: 1, row: "", sql: "", filters: [["source_row", `is:${sourceRow}`]] };
      $("elsewhere").append(" ", linkTo(stage.name, there));
    }
  }

  function drawNeighbours(state) {
    const at = shown.addresses.indexOf(state.row);
    $("row-previous").disabled = at <= 0;
    $("row-next").disabled = at < 0 || at >= shown.addresses.length - 1;
  }

  function step(by) {
    const row = shown.addresses[shown.addresses.indexOf(readAddress().row) + by];
    if (row) go({ row });
  }

  function draw() {
    const state = readAddress();
    document.title = `${state.row || state.stage} – Stillhouse view`;
    drawStages(state);
    drawFilters(state);
    $("q").value = state.q;
    Query.draw(state.sql, ask);
    drawRow(state);
    drawRows(state).then(() => drawNeighbours(state));
  }

  function search(wanted) {
    const where = $("where").value;
    if (where && wanted) {
      $("q").value = "";
      filter(where, `has:${wanted}`);
    } else go({ q: wanted, page: 1 });
  }

  function listen() {
    $("search").addEventListener("submit", (event) => { event.preventDefault(); search($("q").value.trim()); });
    Filters.listen(filter);
    $("sql").addEventListener("submit", (event) => { event.preventDefault(); Query.forget(); go({ sql: $("query").value.trim() }); });
    $("query").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("sql").requestSubmit();
    });
    $("previous").addEventListener("click", () => go({ page: readAddress().page - 1 }));
    $("next").addEventListener("click", () => go({ page: readAddress().page + 1 }));
    $("page").addEventListener("change", () => go({ page: Math.max(1, parseInt($("page").value, 10) || 1) }));
    $("row-previous").addEventListener("click", () => step(-1));
    $("row-next").addEventListener("click", () => step(1));
    $("row-close").addEventListener("click", () => go({ row: "" }));
    $("row").addEventListener("keydown", (event) => { if (event.key === "Escape" && !event.defaultPrevented) go({ row: "" }); });
    window.addEventListener("popstate", draw);
  }

  async function start() {
    try {
      place = await ask("/api/place", "");
    } catch (error) {
      failed(error);
      return;
    }
    $("path").textContent = place.path;
    $("kind").textContent = place.kind;
    $("tables").textContent = place.stages
      .map((stage) => (stage.aliases.length ? `${stage.name}, also called ${stage.aliases.join(" or ")}` : stage.name)).join("; ");
    $("notes").replaceChildren(...place.notes.map((note) => make("p", "note", note)));
    $("query").placeholder = `select language, count(*) from ${place.stages[0].name} group by language order by 2 desc`;
    listen();
    draw();
  }
  start();
})();
