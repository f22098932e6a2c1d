// The official Anthropic SDK for Node on the native route. What it met goes to standard output.
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic(); // ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY
const asked = {
  model: "echo",
  max_tokens: 64,
  messages: [{ role: "user", content: "hello to you" }],
};

const acts = {
  async message() {
    const answer = await client.messages.create(asked);
    return { text: answer.content[0].text, ours: /^req_/.test(answer._request_id) };
  },
  async stream() {
    return client.messages.stream(asked).finalText();
  },
  async counted() {
    const { model, messages } = asked;
    return (await client.messages.countTokens({ model, messages })).input_tokens;
  },
  async models() {
    const names = [];
    for await (const model of client.models.list()) names.push(model.id);
    return names.includes("echo");
  },
  async unknown() {
    try {
      await client.messages.create({ ...asked, model: "ecko" });
    } catch (error) {
      const { type, message } = error.error.error;
      return { kind: error.constructor.name, status: error.status, type, message };
    }
  },
};

console.log(JSON.stringify(await acts[process.argv[2]]()));
