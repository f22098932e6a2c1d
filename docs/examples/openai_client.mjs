import OpenAI from "openai";

const answer = await new OpenAI().chat.completions.create({
  model: "echo",
  messages: [{ role: "user", content: "hello" }],
});
console.log(answer.choices[0].message.content);
