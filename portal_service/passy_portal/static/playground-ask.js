"use strict";
/* One question to the gateway, as any client asks it: by fetch, with a key, without cookies. */

class Refused extends Error {
  constructor(status, said) {
    super("refused");
    this.status = status;
    this.said = said;
  }
}

/* Ask, and tell each piece as it comes: {head}, {text}, {thought}, {usage}, {ended}. Throws Refused
   for an error of the gateway, also within a stream; what fetch throws where there is no answer. */
async function askGateway({ base, key, body, signal, tell }) {
  const answer = await fetch(`${base}/chat/completions`, {
    method: "POST",
    credentials: "omit",
    cache: "no-store",
    headers: { "authorization": `Bearer ${key}`, "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  tell({ head: answer.headers });
  const type = answer.headers.get("content-type") || "";
  if (!answer.ok) throw new Refused(answer.status, readable(await answer.text()));
  if (!type.startsWith("text/event-stream")) {
    const said = readable(await answer.text());
    if (typeof said === "string") throw new Refused(answer.status, said);
    const choice = said.choices?.[0];
    tellChoice(choice?.message, tell);
    tell({ usage: said.usage, ended: choice?.finish_reason });
    return;
  }
  for await (const data of messages(answer.body)) {
    if (data === "[DONE]") continue;
    const said = readable(data);
    if (said.error) throw new Refused(answer.status, said);
    const choice = said.choices?.[0];
    tellChoice(choice?.delta, tell);
    if (choice?.finish_reason) tell({ ended: choice.finish_reason });
    if (said.usage) tell({ usage: said.usage });
  }
}

function tellChoice(part, tell) {
  if (!part) return;
  const thought = part.reasoning_content ?? part.reasoning;
  if (typeof thought === "string" && thought) tell({ thought });
  if (typeof part.content === "string" && part.content) tell({ text: part.content });
  else if (typeof part.refusal === "string" && part.refusal) tell({ text: part.refusal });
  for (const call of part.tool_calls ?? []) {
    const named = call.function?.name ? `\n${call.function.name} ` : "";
    const text = named + (call.function?.arguments ?? "");
    if (text) tell({ text });
  }
}

function readable(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/* The data of each server-sent event. */
async function* messages(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      held += done ? "\n\n" : value;
      // A CR at the end may be the first half of a line's end.
      const whole = !done && held.endsWith("\r") ? held.slice(0, -1) : held;
      const lines = whole.split(/\r\n|\n|\r/);
      const rest = held.slice(whole.length);
      held = lines.pop() + rest;
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
