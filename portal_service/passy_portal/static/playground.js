"use strict";
/* The page of the playground: what is asked, the answers side by side, and what is kept. */

{
  const page = document.getElementById("playground");
  const { root, csrf } = page.dataset;
  const given = JSON.parse(page.dataset.given);
  const all = (query, within = page) => [...within.querySelectorAll(query)];
  const find = (query, within = page) => within.querySelector(query);
  const form = document.getElementById("ask");
  const pickers = all("[data-model]");
  const turns = find("[data-turns]");
  const answers = all("[data-answer]");
  const ownKey = find("[data-own-key]");
  const DRAFT = "passy-playground";
  const COLUMN = "conversation";
  let opened = null; // The prompt that is being changed, if it is one's own.
  let comparing = false;
  let running = [];

  // What is asked

  function addTurn(role, content) {
    const turn = document.getElementById("turn").content.cloneNode(true).firstElementChild;
    const number = `${COLUMN}-${crypto.getRandomValues(new Uint32Array(1))[0]}`;
    const [who, said] = [find("[data-role]", turn), find("[data-content]", turn)];
    who.id = `${number}-role`;
    said.id = `${number}-said`;
    who.previousElementSibling.htmlFor = who.id;
    said.previousElementSibling.htmlFor = said.id;
    who.value = role;
    said.value = content;
    who.addEventListener("change", () => hint(turn));
    hint(turn);
    turns.append(turn);
    return said;
  }

  function hint(turn) {
    find("[data-content]", turn).placeholder = {
      system: "How the model should answer (may stay empty)",
      user: "Ask something",
      assistant: "What the model is to have said",
    }[find("[data-role]", turn).value];
  }

  const said = () => [...turns.children].map((turn) => ({
    role: find("[data-role]", turn).value,
    content: find("[data-content]", turn).value,
  }));

  const models = () => pickers.slice(0, comparing ? 2 : 1).map((one) => one.value.trim());

  function parameters() {
    const chosen = {};
    for (const field of all("[data-parameter]")) {
      const name = field.dataset.parameter;
      if (field.type === "checkbox") chosen[name] = field.checked;
      else if (name === "stop") {
        chosen.stop = field.value.split(",").map((one) => one.trim()).filter(Boolean).slice(0, 4);
      } else if (field.value !== "") {
        chosen[name] = field.type === "number" ? field.valueAsNumber : field.value;
      }
    }
    return chosen;
  }

  const content = () => ({
    models: models(),
    messages: said().filter((one) => one.content !== ""),
    parameters: parameters(),
  });

  /* As chat completions have it. */
  function bodyFor(model, { messages, parameters: { stream, json_only, stop, ...more } }) {
    const body = { model, messages, ...more };
    if (stop.length) body.stop = stop;
    if (json_only) body.response_format = { type: "json_object" };
    if (stream) Object.assign(body, { stream: true, stream_options: { include_usage: true } });
    return body;
  }

  function compare(wanted) {
    comparing = wanted;
    find("[data-second]").hidden = !wanted;
    pickers[1].required = wanted;
    const button = find("[data-compare]");
    button.setAttribute("aria-pressed", String(wanted));
    button.textContent = wanted ? "One is enough" : "Compare two";
    find("[data-answers]").classList.toggle("two", wanted);
    if (!wanted) answers[1].hidden = true;
  }

  function fill({ models: [first, second], messages, parameters: chosen }) {
    pickers[0].value = first ?? "";
    pickers[1].value = second ?? "";
    compare(Boolean(second));
    turns.replaceChildren();
    for (const one of messages) addTurn(one.role, one.content);
    if (messages.at(-1)?.role !== "user") addTurn("user", "");
    let changed = false;
    for (const field of all("[data-parameter]")) {
      const value = chosen?.[field.dataset.parameter];
      if (field.type === "checkbox") field.checked = value ?? field.defaultChecked;
      else field.value = Array.isArray(value) ? value.join(", ") : value ?? "";
      changed ||= field.type === "checkbox" ? field.checked !== field.defaultChecked : field.value !== "";
    }
    if (changed) find("[data-parameters]").open = true;
    drafted();
  }

  /* Nothing that was typed is lost by a reload; a key is no part of it. */
  function drafted() {
    sessionStorage.setItem(DRAFT, JSON.stringify({ ...content(), messages: said() }));
    const code = codeFor(given.base, bodyFor(models()[0] || "model", content()));
    for (const each of all("[data-code]", page)) each.textContent = code[each.dataset.code];
  }

  // The key: in this page's memory, for a quarter of an hour

  let key = null;
  let ends = 0;
  ownKey.required = !page.dataset.sends; // Of whose role makes none.
  ownKey.addEventListener("invalid", () => { find(".own").open = true; });

  async function keyNow() {
    if (ownKey.value.trim()) return ownKey.value.trim();
    if (key && Date.now() < ends - 30_000) return key;
    const made = await portal("POST", "/api/playground/key");
    key = made.key;
    ends = Date.parse(made.expires_at);
    return key;
  }

  /* The portal's own API; an error of it is thrown as a Refused. */
  async function portal(method, path, body) {
    const headers = { "x-csrf-token": csrf };
    if (body !== undefined) headers["content-type"] = "application/json";
    const answer = await fetch(root + path, {
      method, headers, body: body === undefined ? undefined : JSON.stringify(body),
    });
    const text = await answer.text();
    if (answer.ok) return text ? JSON.parse(text) : null;
    throw new Refused(answer.status, readable(text));
  }

  // The answers

  class Run {
    constructor(place, model) {
      this.box = answers[place];
      this.model = model;
      this.began = performance.now();
      this.first = null;
      this.sent = null;
      this.head = null;
      this.usage = null;
      this.ended = "";
      this.stop = new AbortController();
      this.box.hidden = false;
      for (const name of ["said", "thought-text", "measures", "json"]) this.part(name).replaceChildren();
      for (const name of ["thought", "wrong", "go-on", "copy-answer"]) this.part(name).hidden = true;
      this.part("name").textContent = model;
      this.part("stop").hidden = false;
      this.state("busy", "waiting");
    }

    part(name) {
      return find(`[data-${name}]`, this.box);
    }

    state(kind, text) {
      const state = this.part("state");
      state.className = `state ${kind}`;
      state.textContent = text;
    }

    async go(asked) {
      const body = bodyFor(this.model, asked);
      try {
        try {
          await this.ask(body);
        } catch (error) {
          // Its key may have ended meanwhile, with another page or by the clock.
          if (!(error instanceof Refused) || error.status !== 401 || ownKey.value.trim()) throw error;
          key = null;
          await this.ask(body);
        }
        this.state("done", this.ended === "length" ? "cut at most tokens" : "done");
      } catch (error) {
        if (error.name === "AbortError") this.state("stopped", "stopped");
        else this.failed(error);
      } finally {
        this.over();
      }
    }

    async ask(body) {
      const shown = await keyNow();
      this.began = performance.now();
      await askGateway({
        base: given.base, key: shown, body, signal: this.stop.signal, tell: (piece) => this.hear(piece),
      });
    }

    hear({ head, text, thought, usage, ended }) {
      if (head) this.head = head;
      if (usage) this.usage = usage;
      if (ended) this.ended = ended;
      for (const [piece, name] of [[thought, "thought-text"], [text, "said"]]) {
        if (!piece) continue;
        if (this.first === null) {
          this.first = performance.now() - this.began;
          this.state("busy", "answering");
          this.measure();
        }
        if (name === "thought-text") this.part("thought").hidden = false;
        const box = this.part(name);
        const follows = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
        box.append(piece);
        if (follows) box.scrollTop = box.scrollHeight;
      }
      if (head || usage) this.measure();
    }

    failed(error) {
      const refused = error instanceof Refused;
      const known = refused ? error.said : { name: error.name, message: error.message };
      const code = known?.error?.code ?? known?.error?.type;
      const { explained } = given;
      this.part("words").textContent = refused
        ? explained.code[code] ?? explained.status[error.status] ?? "The gateway refused the request."
        : explained.unreached;
      this.part("json").textContent = typeof known === "string" ? known : JSON.stringify(known, null, 2);
      this.part("wrong").hidden = false;
      this.state("failed", refused ? `failed · ${error.status}` : "not reached");
    }

    over() {
      this.total = performance.now() - this.began;
      this.part("stop").hidden = true;
      const text = this.part("said").textContent;
      this.part("go-on").hidden = !text;
      this.part("copy-answer").hidden = !text || !navigator.clipboard;
      this.measure();
      running = running.filter((one) => one !== this);
      if (!running.length) sending(false);
      if (this.head && given.books) this.look(5);
    }

    /* What the books have a moment later: when the gateway sent the first byte, and what it cost. */
    async look(times) {
      const id = this.head.get("x-request-id");
      for (let n = 1; id && n <= times; n += 1) {
        await new Promise((after) => setTimeout(after, 400 * n));
        try {
          const told = await portal("GET", `/api/requests/${encodeURIComponent(id)}`);
          this.sent = told.first_ms;
          if (told.cost_usd !== null) this.priced = Number(told.cost_usd);
          this.unpriced = this.cost() === null; // Perhaps its price is being looked up.
          this.measure();
          if (!this.unpriced) return;
        } catch {
          // Not there yet.
        }
      }
    }

    cost() {
      const told = this.head?.get("x-passy-cost-usd") ?? this.usage?.cost ?? this.priced;
      return told === undefined || told === null ? null : Number(told);
    }

    measure() {
      const told = (name) => this.head?.get(name);
      const used = this.usage;
      const spoken = used?.completion_tokens;
      const seconds = ((this.total ?? performance.now() - this.began) - (this.first ?? 0)) / 1000;
      const cached = used?.prompt_tokens_details?.cached_tokens;
      const thought = used?.completion_tokens_details?.reasoning_tokens;
      const streamed = (told("content-type") || "").startsWith("text/event-stream");
      const rows = [
        ["First text here", this.first === null ? "" : took(this.first)],
        ["First byte, gateway", this.first === null || this.sent === null ? "" : this.sent ? took(this.sent) : "under 1 ms"],
        ["In all", this.total === undefined ? "" : took(this.total)],
        ["Tokens in", used ? count(used.prompt_tokens) + (cached ? ` (${count(cached)} cached)` : "") : ""],
        ["Tokens out", used ? count(spoken) + (thought ? ` (${count(thought)} reasoning)` : "") : ""],
        ["Speed", spoken && streamed && seconds > 0.05 ? `${count(Math.round(spoken / seconds))} tokens/s` : ""],
        ["Cost", this.cost() !== null ? money(this.cost()) : this.unpriced ? "no price known" : ""],
        ["Attempts", told("x-passy-attempts")],
        ["Answered by", told("x-passy-upstream"), true],
        ["Not passed on", told("x-passy-dropped"), true],
        ["Ended by", this.ended && this.ended !== "stop" ? this.ended : ""],
        ["Request", told("x-request-id"), true],
      ];
      this.part("measures").replaceChildren(...rows.filter((row) => row[1]).map(([name, value, whole]) => {
        const box = document.createElement("div");
        if (whole) box.className = "whole";
        const [term, text] = [document.createElement("dt"), document.createElement("dd")];
        term.textContent = name;
        if (name === "Request" && given.books) {
          const link = document.createElement("a");
          link.href = `${root}/requests/${encodeURIComponent(value)}`;
          link.textContent = value;
          text.append(link);
        } else text.textContent = value;
        box.append(term, text);
        return box;
      }));
    }
  }

  const took = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`);
  const count = (number) => (number ?? 0).toLocaleString("en");

  /* Two digits that say something, however little it is. */
  function money(dollars) {
    if (dollars === 0) return "$0.00";
    const places = dollars >= 0.01 ? 4 : Math.min(12, 2 - Math.floor(Math.log10(dollars)));
    return `$${dollars.toFixed(places).replace(/(\.\d\d\d*?)0+$/, "$1")}`;
  }

  function sending(now) {
    find("[data-send]").hidden = now;
    find("[data-stop-all]").hidden = !now;
  }

  async function send() {
    if (running.length || !form.reportValidity()) return;
    const asked = content();
    if (!asked.messages.some((one) => one.role !== "system")) {
      const empty = all("[data-content]", turns).at(-1) ?? addTurn("user", "");
      empty.focus();
      return;
    }
    find("[data-examples]").hidden = true;
    find("[data-answers]").hidden = false;
    sending(true);
    running = asked.models.map((model, place) => new Run(place, model));
    find("[data-stop-all]").focus({ preventScroll: true });
    answers[0].scrollIntoView({ block: "nearest" });
    const before = key;
    if (!ownKey.value.trim() && running.length > 1) {
      try {
        await keyNow(); // One for both.
      } catch {
        key = before; // Each says it for itself.
      }
    }
    await Promise.all(running.map((one) => one.go(asked)));
    if (document.activeElement === document.body) find("[data-send]").focus({ preventScroll: true });
  }

  // What is kept

  const tell = (text) => { find("[data-told]").textContent = text; };

  async function keep(anew) {
    const title = find("[data-title]");
    if (!title.reportValidity() || !form.reportValidity()) return;
    const wanted = { title: title.value.trim(), shared: find("[data-shared]").checked, content: content() };
    try {
      const kept = opened && !anew
        ? await portal("PATCH", `/api/playground/prompts/${opened}`, wanted)
        : await portal("POST", "/api/playground/prompts", wanted);
      entered(kept);
      tell(kept.shared ? "Kept. Its link is this page's address, for all members." : "Kept.");
      mine(kept);
      history.replaceState(null, "", `${root}/playground?open=${kept.id}`);
    } catch (error) {
      tell(error instanceof Refused ? error.said?.error?.message ?? "It was not kept." : "The portal cannot be reached now.");
    }
  }

  function mine(prompt) {
    const title = find("[data-title]");
    if (!title) return;
    opened = prompt.mine ? prompt.id : null;
    title.value = prompt.title;
    find("[data-shared]").checked = prompt.mine && prompt.shared;
    find("[data-keep-button]").textContent = opened ? "Save changes" : "Save a copy";
    find("[data-keep-new]").hidden = !opened;
  }

  function entered(prompt) {
    const row = document.createElement("li");
    row.dataset.prompt = prompt.id;
    const link = document.createElement("a");
    link.href = `${root}/playground?open=${prompt.id}`;
    link.textContent = prompt.title;
    row.append(link);
    if (prompt.shared) {
      const tag = document.createElement("span");
      tag.className = "tag";
      tag.textContent = "shared";
      row.append(" ", tag);
    }
    const under = document.createElement("span");
    under.className = "under";
    under.textContent = `you · ${prompt.content.models.join(", ")}`;
    const forget = document.createElement("button");
    forget.type = "button";
    forget.className = "quiet";
    forget.dataset.forget = "";
    forget.setAttribute("aria-label", `Delete ${prompt.title}`);
    forget.textContent = "Delete";
    row.append(under, forget);
    find(`[data-prompt="${prompt.id}"]`)?.remove();
    find("[data-prompts]").prepend(row);
  }

  find("[data-prompts]").addEventListener("click", async (event) => {
    const button = event.target.closest("[data-forget]");
    if (!button) return;
    if (!button.dataset.sure) {
      button.dataset.sure = "yes";
      button.textContent = "Really delete";
      return;
    }
    const row = button.closest("[data-prompt]");
    try {
      await portal("DELETE", `/api/playground/prompts/${row.dataset.prompt}`);
      if (opened === row.dataset.prompt) {
        opened = null;
        find("[data-keep-button]").textContent = "Save";
        find("[data-keep-new]").hidden = true;
        history.replaceState(null, "", `${root}/playground`);
      }
      row.remove();
      tell("Deleted.");
    } catch (error) {
      tell(error instanceof Refused ? error.said?.error?.message ?? "It was not deleted." : "The portal cannot be reached now.");
    }
  });

  // What is pressed

  form.addEventListener("submit", (event) => { event.preventDefault(); send(); });
  form.addEventListener("input", drafted);
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); send(); }
  });
  find("[data-add]").addEventListener("click", () => {
    addTurn(said().at(-1)?.role === "user" ? "assistant" : "user", "").focus();
    drafted();
  });
  turns.addEventListener("click", (event) => {
    const button = event.target.closest("[data-remove]");
    if (!button) return;
    const [turn, next] = [button.closest("li"), button.closest("li").nextElementSibling];
    turn.remove();
    (find("[data-content]", next ?? turns) ?? find("[data-add]")).focus();
    drafted();
  });
  find("[data-compare]").addEventListener("click", () => {
    compare(!comparing);
    if (comparing) pickers[1].focus();
    drafted();
  });
  find("[data-stop-all]").addEventListener("click", () => running.forEach((one) => one.stop.abort()));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running.forEach((one) => one.stop.abort());
  });
  answers.forEach((box) => {
    find("[data-stop]", box).addEventListener("click", () => {
      running.find((one) => one.box === box)?.stop.abort();
    });
    find("[data-go-on]", box).addEventListener("click", () => {
      for (const turn of [...turns.children]) {
        if (!find("[data-content]", turn).value) turn.remove();
      }
      addTurn("assistant", find("[data-said]", box).textContent);
      addTurn("user", "").focus();
      drafted();
    });
    find("[data-copy-answer]", box).addEventListener("click", async (event) => {
      const button = event.currentTarget;
      await navigator.clipboard.writeText(find("[data-said]", box).textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  });
  for (const button of all("[data-example]")) {
    button.addEventListener("click", () => {
      const { system, question } = button.dataset;
      const begin = system ? [{ role: "system", content: system }] : [];
      fill({ ...content(), messages: [...begin, { role: "user", content: question }] });
      find("[data-send]").focus();
    });
  }
  find("[data-keep]")?.addEventListener("submit", (event) => { event.preventDefault(); keep(false); });
  find("[data-keep-new]")?.addEventListener("click", () => keep(true));

  // How it begins: with what was opened, else as it was left, else empty

  const start = { models: [given.model], messages: [{ role: "system", content: "" }, { role: "user", content: "" }], parameters: { stream: true } };
  let draft = null;
  try {
    draft = JSON.parse(sessionStorage.getItem(DRAFT));
  } catch {
    // Somebody else's.
  }
  if (given.open) {
    fill(given.open.content);
    mine(given.open);
  } else if (draft?.messages && draft?.models) {
    fill(given.asked ? { ...draft, models: [given.model] } : draft);
  } else fill(start);
  if (turns.children.length === 1 && !given.open) {
    const [only] = said();
    turns.replaceChildren();
    addTurn("system", "");
    addTurn(only.role, only.content);
  }
}
