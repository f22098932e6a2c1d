// The live tail: rows that the portal sends as they arrive. The list works without it.
"use strict";

const live = document.querySelector("#live");
if (live && window.EventSource) {
  const MOST = 300;                    // rows in the page
  const SAID_EVERY = 3000;             // milliseconds between two words to who listens
  const body = document.querySelector("#request-rows");
  const table = document.querySelector("#request-table");
  const told = document.querySelector("#tail-state");
  const label = live.querySelector("[data-label]");
  let place = live.dataset.place, source = null, fresh = 0, failed = 0, lost = false, timer = 0;

  const say = (text) => { if (told.textContent !== text) told.textContent = text; };
  const count = (number, one, several) => `${number} ${number === 1 ? one : several}`;
  const sum = () => {
    timer = 0;
    if (!source) return;
    const gap = lost ? " Some may be missing: load the page again." : "";
    say(fresh ? `${count(fresh, "new request", "new requests")}, ${failed} of them failed or refused.${gap}` : `Waiting for requests.${gap}`);
  };

  const arrived = (event) => {
    if (event.lastEventId) place = event.lastEventId;
    const piece = JSON.parse(event.data);
    if (piece.away) { say("The books cannot be asked now; requests are not affected. Trying again."); return; }
    lost = lost || piece.lost;
    if (piece.rows) {
      const made = document.createElement("template");
      made.innerHTML = piece.rows;     // made by the portal's own template, which escapes
      const known = new Set([...body.rows].map((row) => row.dataset.id));
      for (const row of [...made.content.children]) {
        if (known.has(row.dataset.id)) row.remove();
        else { row.classList.add("fresh"); fresh += 1; }
      }
      failed += piece.failed;
      localise(made.content);
      body.prepend(made.content);
      while (body.rows.length > MOST) body.rows[body.rows.length - 1].remove();
      table.hidden = false;
      document.querySelector("#no-rows")?.remove();
    }
    if (!timer) timer = setTimeout(sum, told.textContent.startsWith("Waiting") ? 0 : SAID_EVERY);
  };

  const stop = (text) => {
    source?.close();
    source = null;
    live.setAttribute("aria-pressed", "false");
    label.textContent = "Live";
    say(text);
  };

  const start = () => {
    const address = new URL(live.dataset.tail, location.href);
    address.searchParams.set("place", place);
    source = new EventSource(address);
    live.setAttribute("aria-pressed", "true");
    label.textContent = "Pause";
    say("Waiting for requests.");
    source.addEventListener("message", arrived);
    source.addEventListener("end", () => stop("Your session has ended. Sign in again to go on."));
    source.addEventListener("error", () => {
      if (source && source.readyState === EventSource.CLOSED) stop("The live tail has ended. Load the page again to go on.");
    });
  };

  live.hidden = false;
  live.addEventListener("click", () => (source ? stop(`Paused after ${count(fresh, "request", "requests")}.`) : start()));
  if (new URLSearchParams(location.search).has("live")) start();
}
