// Keys: a first request of a new one, sent by the browser itself, and ticks for all of a page.
"use strict";

for (const button of document.querySelectorAll("[data-try]")) {
  const told = document.querySelector("[data-tried]");
  const key = document.getElementById("the-key").textContent;
  button.hidden = false;
  button.addEventListener("click", async () => {
    button.disabled = true;
    told.textContent = "Asking…";
    told.className = "tried muted";
    const began = performance.now();
    try {
      const answer = await fetch(button.dataset.try, {
        method: "POST",
        credentials: "omit",
        headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
        body: JSON.stringify({
          model: button.dataset.model,
          messages: [{ role: "user", content: "hello" }],
          max_tokens: 16,
        }),
      });
      const said = await answer.json();
      const took = `${Math.round(performance.now() - began)} ms`;
      if (answer.ok) {
        const usage = said.usage || {};
        const cost = answer.headers.get("x-passy-cost-usd");
        told.className = "tried note good";
        told.textContent = [
          `${answer.status} in ${took}`,
          `${usage.prompt_tokens ?? 0} tokens in, ${usage.completion_tokens ?? 0} out`,
          cost === null ? "its cost is not known" : `$${cost.replace(/(\.\d\d\d*?)0+$/, "$1")}`,
        ].join(" · ");
      } else {
        told.className = "tried note bad";
        told.textContent = `${answer.status} in ${took} · ${said.error?.message ?? "no reason given"}`;
      }
    } catch {
      told.className = "tried note bad";
      told.textContent = "This browser cannot reach the gateway from here. Run the curl command below where it can be reached.";
    }
    button.disabled = false;
    button.textContent = "Send another one";
  });
}

const ticks = [...document.querySelectorAll("[data-tick]")];
const whole = document.querySelector("[data-all]");
if (whole && ticks.length) {
  const box = whole.querySelector("input");
  const ticked = document.querySelector("[data-ticked]");
  whole.hidden = false;
  const count = () => {
    const chosen = ticks.filter((one) => one.checked).length;
    box.checked = chosen === ticks.length;
    box.indeterminate = chosen > 0 && chosen < ticks.length;
    ticked.textContent = chosen ? `With the ${chosen} ticked:` : "With those ticked:";
  };
  box.addEventListener("change", () => {
    for (const one of ticks) one.checked = box.checked;
    count();
  });
  for (const one of ticks) one.addEventListener("change", count);
}
