"use strict";
// A person's query, and its answer.

const Query = (() => {
  const $ = (id) => document.getElementById(id);
  let shown = "";
  async function draw(sql, ask) {
    if (sql === shown) return;
    shown = sql;
    $("query").value = sql;
    $("sql-result").hidden = true;
    $("sql-status").textContent = "";
    if (!sql) return;
    $("asking").open = true;
    $("sql-status").textContent = "Asking …";
    try {
      const result = await ask("/api/sql", "", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ sql }),
      });
      if (sql !== shown) return;
      const notes = [`${Table.plural(result.rows.length, "row")} (${result.seconds.toFixed(2)} s)`];
      if (result.more) notes.push("there are more rows, which are left out");
      if (result.clipped) notes.push("long values are cut off");
      $("sql-status").textContent = notes.join("; ");
      Table.drawResult($("sql-result"), result);
    } catch (error) {
      if (sql === shown) $("sql-status").replaceChildren(renderConversation.text(error.message, "failure"));
    }
  }

  // The same query is asked again.
  function forget() {
    shown = "";
  }

  return { draw, forget };
})();
