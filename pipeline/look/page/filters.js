"use strict";
// Filters of columns, as addresses spell them (pipeline/look/view/queries.py): in words, and from the form that adds one.

const Filters = (() => {
  const $ = (id) => document.getElementById(id);
  const ARE = {
    number: ["is between", "is", "is empty", "is not empty"],
    length: ["is between", "is", "is empty", "is not empty"],
    text: ["is", "contains", "has a length between", "is empty", "is not empty"],
    flag: ["is", "is empty", "is not empty"],
    other: ["contains", "is empty", "is not empty"],
  };
  let columns = [];

  function inWords(value) {
    const [, kind, rest] = value.match(/^(is|has|length):(.*)$/s) ?? [null, "", value];
    const range = (text) => {
      const [low, high] = text.split("..");
      return high === undefined ? text : low === "" ? `below ${high}` : high === "" ? `${low} or more` : `${low} to below ${high}`;
    };
    if (value === "null") return "is empty";
    if (value === "there") return "is not empty";
    return { is: `is ${rest}`, has: `contains “${rest}”`, length: `has a length of ${range(rest)}` }[kind] ?? `is ${range(value)}`;
  }

  function offer(offered) {
    columns = offered;
    const chosen = $("add-column").value;
    $("add-column").replaceChildren(...columns.map((column) => Table.make("option", "", column.name)));
    if (columns.some((column) => column.name === chosen)) $("add-column").value = chosen;
    offerQuestions();
  }

  function offerQuestions() {
    const column = columns.find((one) => one.name === $("add-column").value) ?? columns[0];
    const are = [...ARE[column.kind]];
    if (column.name === "answer") are.sort((a, b) => (b === "contains") - (a === "contains")); // nobody types it whole
    $("add-what").replaceChildren(...are.map((what) => Table.make("option", "", what)));
    offerValues();
  }

  function offerValues() {
    const what = $("add-what").value;
    $("add-from-label").hidden = what.includes("empty");
    $("add-to-label").hidden = !what.includes("between");
    $("add-from-label").firstElementChild.textContent = what.includes("between") ? "from" : "";
    $("add-from").setAttribute("aria-label", what.includes("between") ? "from" : "value");
  }

  // `onFilter` gets the name of a column and the filter.
  function listen(onFilter) {
    $("add-column").addEventListener("change", offerQuestions);
    $("add-what").addEventListener("change", offerValues);
    $("add").addEventListener("submit", (event) => {
      event.preventDefault();
      const from = $("add-from").value;
      const range = `${from.trim()}..${$("add-to").value.trim()}`;
      onFilter($("add-column").value, {
        "is between": range,
        "has a length between": `length:${range}`,
        "is": `is:${from}`,
        "contains": `has:${from}`,
        "is empty": "null",
        "is not empty": "there",
      }[$("add-what").value]);
    });
  }

  return { inWords, offer, listen };
})();
