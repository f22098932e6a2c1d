// What makes the pages quicker to use. Each works without it.
"use strict";

const all = (query, within = document) => [...within.querySelectorAll(query)];

// Times in the reader's zone; the title keeps UTC.
const PARTS = {
  short: { dateStyle: "medium", timeStyle: "short" },
  all: { dateStyle: "medium", timeStyle: "medium" },
  time: { timeStyle: "medium" },
  date: { dateStyle: "medium" },
};
function localise(within) {
  for (const each of all("time[datetime]", within)) {
    if ("day" in each.dataset) continue;
    each.textContent = new Date(each.dateTime).toLocaleString([], PARTS[each.dataset.part ?? "short"]);
  }
}
localise(document);

// The page one is on is seen among the others, however narrow the bar.
const nav = document.querySelector(".nav");
const current = nav?.querySelector("[aria-current]");
if (current) nav.scrollLeft = current.offsetLeft - (nav.clientWidth - current.offsetWidth) / 2;

// A row leads where its name leads. On phones it is a card: each cell has its column's name then,
// and the roles that the table loses with its shape. Rows may come later.
for (const table of all("table.rows")) {
  const names = all("thead th", table).map((each) => each.textContent.trim());
  const dress = (row) => {
    row.setAttribute("role", "row");
    [...row.cells].forEach((cell, place) => {
      const ticked = cell.querySelector("input[type=checkbox]");
      if (cell.tagName === "TD" && !ticked) cell.dataset.th = names[place] ?? "";
      const header = cell.scope === "row" ? "rowheader" : "columnheader";
      cell.setAttribute("role", cell.tagName === "TD" ? "cell" : header);
    });
    if (row.querySelector("th[scope=row] a[href]")) row.classList.add("leads");
  };
  table.classList.add("stacked");
  table.setAttribute("role", "table");
  for (const part of all("thead, tbody", table)) {
    part.setAttribute("role", "rowgroup");
    new MutationObserver((changes) => {
      for (const change of changes) for (const row of change.addedNodes) if (row.cells) dress(row);
    }).observe(part, { childList: true });
  }
  all("tr", table).forEach(dress);
  table.addEventListener("click", (event) => {
    const row = event.target.closest("tr.leads");
    if (!row || event.target.closest("a, button, input, select, summary, label")) return;
    if (String(getSelection())) return;
    const link = row.querySelector("th[scope=row] a[href]");
    if (event.ctrlKey || event.metaKey) open(link.href);
    else link.click();
  });
}

// Copy.
for (const button of all("[data-copy]")) {
  if (!navigator.clipboard) continue;
  const name = button.textContent;
  button.hidden = false;
  button.addEventListener("click", async () => {
    const text = document.querySelector(button.dataset.copy).textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select and copy";
    }
    setTimeout(() => { button.textContent = name; }, 2000);
  });
}

// Snippets one above the other become tabs.
for (const box of all("[data-tabs]")) {
  const parts = all("[data-tab]", box);
  const bar = document.createElement("div");
  bar.className = "tabs";
  bar.setAttribute("role", "tablist");
  bar.setAttribute("aria-label", "Languages and tools");
  const tabs = parts.map((part) => {
    const tab = document.createElement("button");
    tab.type = "button";
    tab.id = `${part.id}-tab`;
    tab.textContent = part.dataset.tab;
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", part.id);
    part.setAttribute("role", "tabpanel");
    part.setAttribute("aria-labelledby", tab.id);
    bar.append(tab);
    return tab;
  });
  const show = (chosen) => parts.forEach((part, place) => {
    part.hidden = place !== chosen;
    tabs[place].setAttribute("aria-selected", String(place === chosen));
    tabs[place].tabIndex = place === chosen ? 0 : -1;
  });
  tabs.forEach((tab, place) => {
    tab.addEventListener("click", () => show(place));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = (place + step + tabs.length) % tabs.length;
      show(next);
      tabs[next].focus();
    });
  });
  box.prepend(bar);
  box.classList.add("tabbed");
  show(0);
}

// The dot that waits for a first request.
for (const dot of all("[data-live]")) {
  const text = document.querySelector("[data-live-text]");
  const look = async () => {
    try {
      const answer = await fetch(dot.dataset.live, { headers: { accept: "application/json" } });
      if (answer.status === 401) return;
      const told = await answer.json();
      const requests = told.totals ? told.totals.requests : told.requests;
      if (requests > 0) {
        dot.classList.add("on");
        if ("liveDone" in text.dataset) text.textContent = text.dataset.liveDone;
        else location.reload();
        return;
      }
    } catch {
      // The gateway is away for a moment; look again.
    }
    setTimeout(look, 1000);
  };
  look();
}

// Keys: g and a letter goes somewhere, / searches, c creates, j and k go through rows, ? says this,
// Esc closes.
const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 };
let began = false;
document.addEventListener("keydown", (event) => {
  const field = event.target.closest("input, select, textarea, [contenteditable]");
  if (event.key === "Escape") {
    if (field) field.blur();
    else document.querySelector("[data-close]")?.click();
    return;
  }
  if (field || event.ctrlKey || event.metaKey || event.altKey) return;
  if (began) {
    began = false;
    const link = document.querySelector(`[data-go="${CSS.escape(event.key)}"]`);
    if (link) { event.preventDefault(); link.click(); }
    return;
  }
  if (event.key === "g") {
    began = true;
    setTimeout(() => { began = false; }, 1000);
  } else if (event.key === "/") {
    const search = document.querySelector("[data-search]");
    if (search) { event.preventDefault(); search.focus(); }
  } else if (event.key === "c") {
    const create = document.querySelector("[data-create]");
    if (create) { event.preventDefault(); create.matches("a") ? create.click() : create.focus(); }
  } else if (event.key in step) {
    const links = all("tr.leads th[scope=row] a[href]");
    const place = links.indexOf(document.activeElement);
    if (!links.length || (place < 0 && event.key.startsWith("Arrow"))) return;
    const next = place < 0 ? 0 : Math.max(0, Math.min(links.length - 1, place + step[event.key]));
    event.preventDefault();
    links[next].focus();
  } else if (event.key === "?") {
    explain();
  }
});

function explain() {
  let box = document.querySelector("dialog.help");
  if (!box) {
    box = document.createElement("dialog");
    box.className = "help";
    const heading = document.createElement("h2");
    heading.textContent = "Keyboard";
    const list = document.createElement("dl");
    const add = (keys, meaning) => {
      const term = document.createElement("dt");
      for (const key of keys.split(" ")) {
        const cap = document.createElement("kbd");
        cap.textContent = key;
        term.append(cap, " ");
      }
      const text = document.createElement("dd");
      text.textContent = meaning;
      list.append(term, text);
    };
    for (const link of all("[data-go]")) add(`g ${link.dataset.go}`, link.textContent.trim());
    add("/", "Search");
    add("c", "Create");
    add("j k", "The next row, the one before; Enter opens it");
    add("Esc", "Close, or leave a field");
    const form = document.createElement("form");
    form.method = "dialog";
    const close = document.createElement("button");
    close.textContent = "Close";
    form.append(close);
    box.append(heading, list, form);
    document.body.append(box);
  }
  box.showModal();
}
