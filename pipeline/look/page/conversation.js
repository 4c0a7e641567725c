"use strict";
// Draws one conversation: its messages, and its tokens with what else the teacher might have written.
//
//   renderConversation(element, conversation)
//
// empties `element` and fills it. `conversation` has the fields that pipeline/look/conversation.py lists. Needs nothing
// but conversation.css. Texts are data of strangers: they reach the page by textContent alone, inside <bdi>, and what
// would move or hide other text is shown as a sign.

const renderConversation = (() => {
  // Probabilities below which a token's shade gets one step darker; `inspect` has the same (look/inspect/heat.py).
  const HEAT = [0.9, 0.6, 0.35, 0.15, 0.02];
  const BANDS = ["≥ 90 %", "60 – 90", "35 – 60", "15 – 35", "2 – 15", "< 2 %"];
  // C0 and C1 controls, soft hyphen, zero-width characters, marks of direction, separators, tags, byte-order mark.
  const UNSEEN =
    /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]/gu;
  let numDrawn = 0;

  function make(name, className, text) {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function sign(character) {
    const code = character.codePointAt(0);
    if (code === 9) return "⇥";
    if (code < 32) return String.fromCodePoint(0x2400 + code);
    return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  }

  // Somebody's text as nodes of `parent`. `breaks`: what a line break looks like.
  function addText(parent, text, breaks) {
    let done = 0;
    for (const found of text.matchAll(UNSEEN)) {
      parent.append(text.slice(done, found.index).replaceAll("\n", breaks));
      parent.append(make("span", "unseen", sign(found[0])));
      done = found.index + found[0].length;
    }
    parent.append(text.slice(done).replaceAll("\n", breaks));
    return parent;
  }

  function bdi(text, className, breaks = "\n") {
    return addText(make("bdi", className), text, breaks);
  }

  function percent(logprob) {
    const value = logprob === null ? 0 : 100 * Math.exp(logprob);
    if (value >= 99.995) return "100 %";
    if (value >= 1) return `${value.toFixed(value >= 10 ? 1 : 2)} %`;
    return value >= 0.001 ? `${Number(value.toPrecision(2))} %` : "< 0.001 %";
  }

  function number(value) {
    if (value === null || value === undefined) return "–";
    if (typeof value !== "number") return typeof value === "object" ? JSON.stringify(value) : String(value);
    return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
  }

  // Null stands for minus infinity.
  function nats(logprob) {
    return logprob === null ? "-∞" : logprob.toFixed(2);
  }

  function heat(logprob) {
    if (logprob === null) return HEAT.length;
    return HEAT.filter((share) => Math.exp(logprob) < share).length;
  }

  function messages(conversation) {
    const part = make("div", "messages");
    if (conversation.template_added) {
      const box = make("div", "message other");
      box.append(make("p", "role", "added by the chat template: in the tokens, and in no message"));
      box.append(bdi(conversation.template_added, "text"));
      part.append(box);
    }
    for (const message of conversation.messages) {
      const box = make("div", `message ${message.role === "assistant" ? "assistant" : "other"}`);
      const role = make("p", "role");
      role.append(bdi(message.role));
      box.append(role);
      if (message.reasoning_content) {
        const thinking = make("div", "thinking");
        thinking.append(make("p", "role", "thinking"), bdi(message.reasoning_content, "text"));
        box.append(thinking);
      }
      box.append(bdi(message.content ?? "", "text"));
      part.append(box);
    }
    for (const text of part.querySelectorAll("bdi.text")) text.dir = "auto";
    return part;
  }

  function columns(conversation) {
    const details = make("details", "columns");
    details.append(make("summary", "", "Columns of this row"));
    const table = make("table");
    const body = table.createTBody();
    for (const [name, value] of Object.entries(conversation.columns ?? {})) {
      const row = body.insertRow();
      const header = make("th", "", name);
      header.scope = "row";
      row.append(header);
      row.insertCell().append(bdi(number(value)));
    }
    details.append(table);
    return details;
  }

  function legend() {
    const line = make("p", "legend");
    line.append(make("span", "given", "given to the teacher"), " · written by it, by probability: ");
    BANDS.forEach((text, step) => {
      line.append(make("span", `token heat-${step}`, text), " ");
    });
    return line;
  }

  // Tokens as a table with a bar for each.
  function bars(caption, rows) {
    const table = make("table", "bars");
    table.append(make("caption", "", caption));
    const body = table.createTBody();
    for (const { id, text, share, label, className } of rows) {
      const row = body.insertRow();
      if (className) row.className = className;
      const header = make("th");
      header.scope = "row";
      header.append(bdi(text, "token-text", "⏎"));
      row.append(header);
      row.append(make("td", "id", id === null ? "" : String(id)), make("td", "share", label));
      const bar = make("div", "bar");
      bar.style.inlineSize = `${Math.max(0, Math.min(1, share)) * 100}%`;
      const cell = make("td", "bar-cell");
      cell.setAttribute("aria-hidden", "true");
      cell.append(bar);
      row.append(cell);
    }
    return table;
  }

  // What is stored about supervised token s, which is token t of the conversation.
  function explain(panel, conversation, t, s) {
    const { tokens } = conversation;
    const id = tokens.ids[t];
    const title = make("p", "title");
    title.append(bdi(tokens.texts[t], "token-text", "⏎"));
    const facts = [`id ${id}`, `token ${s + 1} of ${tokens.logprobs.length}`];
    facts.push(`probability ${percent(tokens.logprobs[s])}, log ${nats(tokens.logprobs[s])} nats`);
    const rank = tokens.ranks ? tokens.ranks[s] : undefined;
    if (rank !== undefined) facts.push(rank === null ? "not among the targets that are stored" : `rank ${rank + 1}`);
    if (tokens.entropies) facts.push(`entropy of the teacher here ${nats(tokens.entropies[s])} nats`);
    panel.replaceChildren(title, make("p", "facts", facts.join(" · ")));
    const alternatives = tokens.alternatives ? tokens.alternatives[s] : null;
    const draws = tokens.draws ? tokens.draws[s] : null;
    if (![alternatives, draws].some((kept) => kept?.length)) {
      panel.append(make("p", "facts", "no targets are stored of this token"));
      return;
    }
    if (alternatives) {
      const rows = alternatives.map(([other, text, logprob]) => ({
        id: other,
        text,
        share: logprob === null ? 0 : Math.exp(logprob),
        label: percent(logprob),
        className: other === id ? "written" : "",
      }));
      const tail = tokens.tails ? tokens.tails[s] : null;
      panel.append(bars(`The teacher's most probable tokens here (${rows.length} shown)`, rows));
      if (tail !== null) panel.append(make("p", "facts", `mass outside of all targets that are stored: ${percent(tail)}`));
    }
    if (draws) {
      const shown = draws.reduce((sum, draw) => sum + draw[2], 0);
      const total = conversation.columns?.num_draws ?? shown;
      const rows = draws.map(([other, text, count]) => ({
        id: other,
        text,
        share: count / total,
        label: `${count} ×`,
        className: other === id ? "written" : "",
      }));
      panel.append(bars(`The teacher's draws here (${shown} of ${total} shown)`, rows));
    }
  }

  // The tokens in a row. One of them is in the tab order; arrow keys go on from it. Returned is also what to do once
  // they are in the page: show where the teacher begins, and the token there that it found least probable.
  function stream(conversation, panel) {
    const { tokens } = conversation;
    const line = make("div", "stream");
    line.setAttribute("role", "group");
    line.setAttribute("aria-label", "Tokens; arrow keys go from one written by the teacher to the next");
    const written = [];
    const isId = (t) => tokens.texts[t] === `#${tokens.ids[t]}`; // without the tokenizer
    tokens.ids.forEach((id, t) => {
      const text = tokens.texts[t];
      if (!tokens.supervised[t]) {
        line.append(bdi(text, `token given${isId(t) ? " as-id" : ""}`, "⏎\n"));
        return;
      }
      const s = written.length;
      const token = make("span", `token heat-${heat(tokens.logprobs[s])}${isId(t) ? " as-id" : ""}`);
      token.append(bdi(text === "" ? "·" : text, "", "⏎\n"));
      token.setAttribute("role", "button");
      token.setAttribute("aria-pressed", "false");
      token.setAttribute("aria-controls", panel.id);
      token.tabIndex = s === 0 ? 0 : -1;
      token.dataset.token = String(t);
      token.dataset.supervised = String(s);
      written.push(token);
      line.append(token);
    });
    let shown = null;
    let pinned = null;
    function show(token) {
      if (token === shown || token === null) return;
      shown?.classList.remove("shown");
      token.classList.add("shown");
      shown = token;
      explain(panel, conversation, Number(token.dataset.token), Number(token.dataset.supervised));
    }
    function pin(token) {
      pinned?.setAttribute("aria-pressed", "false");
      pinned = token === pinned ? null : token;
      pinned?.setAttribute("aria-pressed", "true");
      show(token);
    }
    const tokenOf = (event) => event.target.closest("[data-supervised]");
    line.addEventListener("pointerover", (event) => {
      if (pinned === null) show(tokenOf(event));
    });
    line.addEventListener("focusin", (event) => {
      const token = tokenOf(event);
      if (token === null) return;
      for (const other of line.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
      token.tabIndex = 0;
      if (pinned === null) show(token);
    });
    line.addEventListener("click", (event) => {
      const token = tokenOf(event);
      if (token !== null) pin(token);
    });
    line.addEventListener("keydown", (event) => {
      const token = tokenOf(event);
      if (token === null) return;
      const s = Number(token.dataset.supervised);
      const to = { ArrowRight: s + 1, ArrowDown: s + 1, ArrowLeft: s - 1, ArrowUp: s - 1, Home: 0, End: written.length - 1 };
      if (event.key in to) {
        written[Math.max(0, Math.min(written.length - 1, to[event.key]))].focus();
      } else if (event.key === "Enter" || event.key === " ") {
        pin(token);
      } else if (event.key === "Escape" && pinned !== null) {
        pin(pinned);
      } else {
        return;
      }
      event.preventDefault();
    });
    function begin() {
      if (!written.length) return;
      line.scrollTop = written[0].offsetTop - 60;
      const first = written.slice(0, 20);
      const logprob = (token) => tokens.logprobs[Number(token.dataset.supervised)] ?? -Infinity;
      show(first.reduce((least, token) => (logprob(token) < logprob(least) ? token : least)));
    }
    return [line, begin];
  }

  function renderConversation(element, conversation) {
    numDrawn += 1;
    element.classList.add("conversation");
    const panel = make("div", "panel");
    panel.id = `conversation-panel-${numDrawn}`;
    panel.setAttribute("role", "region");
    panel.setAttribute("aria-label", "The token that is looked at");
    if (!conversation.tokens.ids.length) {
      element.replaceChildren(messages(conversation), columns(conversation));
      return;
    }
    const hint = "Point at a token, tap it, or go there by Tab and arrow keys, to see what else the teacher might have written. A click or Enter holds it.";
    const tokens = make("div", "tokens");
    const [line, begin] = stream(conversation, panel);
    tokens.append(line, panel);
    element.replaceChildren(messages(conversation), legend(), make("p", "hint", hint), tokens, columns(conversation));
    begin();
    panel.setAttribute("aria-live", "polite"); // what is shown first is no news
  }
  // renderConversation.text(text, className, breaks): somebody's text as an element, for pages that show it elsewhere.
  renderConversation.text = bdi;
  return renderConversation;
})();
