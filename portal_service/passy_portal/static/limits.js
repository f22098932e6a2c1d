// While a form of limits is filled in, what they would have refused is shown beside it.
"use strict";

for (const form of document.querySelectorAll("form[data-preview]")) {
  const place = form.querySelector(".preview");
  let waiting = 0;
  let asked = 0;
  const look = async () => {
    const mine = ++asked;
    const body = new URLSearchParams(new FormData(form));
    body.set("do", "preview");
    place.setAttribute("aria-busy", "true");
    try {
      const answer = await fetch(form.action, { method: "POST", body });
      if (mine !== asked || (answer.status !== 200 && answer.status !== 422)) return;
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const found = page.querySelector(".preview");
      const error = page.querySelector("form[data-preview] .note.bad");
      place.replaceChildren(...(answer.ok ? found.childNodes : error ? [error] : []));
    } catch {
      // The portal is away for a moment; the button asks again.
    } finally {
      if (mine === asked) place.removeAttribute("aria-busy");
    }
  };
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(look, 400);
  });
}
