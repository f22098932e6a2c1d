// The official OpenAI SDK for Node, as its users have it. What it met goes to standard output.
import OpenAI, { toFile } from "openai";

const client = new OpenAI(); // OPENAI_BASE_URL and OPENAI_API_KEY
const messages = [{ role: "user", content: "hello to you" }];
const tools = [
  {
    type: "function",
    function: {
      name: "weather",
      parameters: {
        type: "object",
        properties: { city: { type: "string" } },
        required: ["city"],
      },
    },
  },
];
const forced = { tools, tool_choice: { type: "function", function: { name: "weather" } } };

async function joined(stream, text) {
  let said = "";
  for await (const chunk of stream) said += text(chunk) ?? "";
  return said;
}

async function caught(promise) {
  try {
    await promise;
  } catch (error) {
    const { status, code, type, param, requestID } = error;
    return { kind: error.constructor.name, status, code, type, param, ours: /^req_/.test(requestID) };
  }
  return null;
}

const acts = {
  async chat() {
    const answer = await client.chat.completions.create({ model: "echo", messages });
    return { text: answer.choices[0].message.content, ours: /^req_/.test(answer._request_id) };
  },
  async stream() {
    const asked = { model: "echo", messages, stream: true };
    const stream = await client.chat.completions.create(asked);
    return joined(stream, (chunk) => chunk.choices[0].delta.content);
  },
  async usage() {
    const asked = { model: "echo", messages, stream: true, stream_options: { include_usage: true } };
    let last;
    for await (const chunk of await client.chat.completions.create(asked)) last = chunk;
    return { choices: last.choices, total: last.usage.total_tokens };
  },
  async tool() {
    const answer = await client.chat.completions.create({ model: "echo", messages, ...forced });
    return JSON.parse(answer.choices[0].message.tool_calls[0].function.arguments);
  },
  async toolStream() {
    const asked = { model: "echo", messages, ...forced };
    const answer = await client.chat.completions.stream(asked).finalChatCompletion();
    return JSON.parse(answer.choices[0].message.tool_calls[0].function.arguments);
  },
  async embeddings() {
    const answer = await client.embeddings.create({ model: "echo", input: ["a", "b"], dimensions: 8 });
    return answer.data.map((one) => one.embedding.length);
  },
  async models() {
    const names = [];
    for await (const model of client.models.list()) names.push(model.id);
    return { listed: names.includes("echo"), one: (await client.models.retrieve("echo")).id };
  },
  async completions() {
    return (await client.completions.create({ model: "echo", prompt: "hi" })).choices[0].text;
  },
  async responses() {
    return (await client.responses.create({ model: "echo", input: "hi" })).output_text;
  },
  async responsesStream() {
    const stream = await client.responses.create({ model: "echo", input: "hi", stream: true });
    return joined(stream, (event) => (event.type === "response.output_text.delta" ? event.delta : ""));
  },
  async upload() {
    const file = await toFile(Buffer.alloc(1 << 20, "x"), "lines.jsonl");
    return (await client.files.create({ file, purpose: "batch" })).id;
  },
  async refused() {
    const wrong = new OpenAI({ apiKey: "sk-wrong" });
    return caught(wrong.chat.completions.create({ model: "echo", messages }));
  },
  async unknown() {
    return caught(client.chat.completions.create({ model: "ecko", messages }));
  },
  async failing() {
    return caught(client.chat.completions.create({ model: "failing", messages }));
  },
  async broken() {
    let said = "";
    const error = await caught(
      (async () => {
        const asked = { model: "broken", messages, stream: true };
        for await (const chunk of await client.chat.completions.create(asked))
          said += chunk.choices[0].delta.content ?? "";
      })(),
    );
    return { said, error };
  },
  async left() {
    const asked = { model: "endless", messages, stream: true };
    for await (const chunk of await client.chat.completions.create(asked)) return chunk.id;
  },
};

console.log(JSON.stringify(await acts[process.argv[2]]()));
