// Asks for each of the named answers, all of which are cut, and tells what the SDKs made of them:
// `{"openai": {name: what}, "anthropic": {…}}`, where what is the error's class, or "nothing".
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const messages = [{ role: "user", content: "hello" }];

async function met(act) {
  try {
    await act();
    return "nothing";
  } catch (error) {
    return error.constructor.name;
  }
}

async function openai(name, mode, model) {
  const client = new OpenAI({ maxRetries: 0, defaultHeaders: { "user-agent": `${name};${mode};node` } });
  const stream = mode === "stream";
  return met(async () => {
    const answer = await client.chat.completions.create({ model, messages, stream });
    if (stream) for await (const chunk of answer) chunk;
  });
}

async function anthropic(name, mode, model) {
  const client = new Anthropic({ maxRetries: 0, defaultHeaders: { "user-agent": `${name};${mode};node` } });
  const stream = mode === "stream";
  return met(async () => {
    const answer = await client.messages.create({ model, messages, stream, max_tokens: 9 });
    if (stream) for await (const event of answer) event;
  });
}

const asked = JSON.parse(process.argv[2]); // [[sdk, name, mode, model], …]
const acts = { openai, anthropic };
const results = await Promise.all(asked.map(([sdk, ...rest]) => acts[sdk](...rest)));
console.log(JSON.stringify(results));
