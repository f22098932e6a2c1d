"use strict";
/* A question to the gateway as code for a shell, Python and Node. */

function codeFor(base, body) {
  return { curl: curlFor(base, body), Python: pythonFor(base, body), Node: nodeFor(base, body) };
}

function curlFor(base, body) {
  const text = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return `curl ${body.stream ? "-N " : ""}${base}/chat/completions \\\n`
    + "  -H \"Authorization: Bearer $PASSY_KEY\" \\\n"
    + "  -H 'Content-Type: application/json' \\\n"
    + `  -d '${text}'`;
}

function pythonFor(base, body) {
  const { stream, stream_options: _, ...asked } = body;
  const rows = Object.entries(asked).map(([name, value]) => `    ${name}=${inPython(value, 1)},\n`);
  const begin = "import os\n\nfrom openai import OpenAI\n\n"
    + `client = OpenAI(base_url=${inPython(base, 0)}, api_key=os.environ["PASSY_KEY"])\n`;
  if (!stream) {
    return `${begin}answer = client.chat.completions.create(\n${rows.join("")})\n`
      + "print(answer.choices[0].message.content)";
  }
  return `${begin}stream = client.chat.completions.create(\n${rows.join("")}    stream=True,\n)\n`
    + "for chunk in stream:\n    if chunk.choices:\n"
    + "        print(chunk.choices[0].delta.content or \"\", end=\"\", flush=True)";
}

function nodeFor(base, body) {
  const { stream, stream_options: _, ...asked } = body;
  const given = JSON.stringify(stream ? { ...asked, stream: true } : asked, null, 2)
    .replace(/^( *)"([A-Za-z_]\w*)":/gm, "$1$2:");
  const begin = "import OpenAI from \"openai\";\n\n"
    + `const client = new OpenAI({ baseURL: ${JSON.stringify(base)}, apiKey: process.env.PASSY_KEY });\n`;
  if (!stream) {
    return `${begin}const answer = await client.chat.completions.create(${given});\n`
      + "console.log(answer.choices[0].message.content);";
  }
  return `${begin}const stream = await client.chat.completions.create(${given});\n`
    + "for await (const chunk of stream) {\n"
    + "  process.stdout.write(chunk.choices[0]?.delta?.content ?? \"\");\n}";
}

function inPython(value, depth) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (typeof value !== "object") return JSON.stringify(value);
  const indent = "    ".repeat(depth + 1);
  const list = Array.isArray(value);
  const rows = list
    ? value.map((one) => `${indent}${inPython(one, depth + 1)},\n`)
    : Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${inPython(one, depth + 1)}`);
  if (!list) return `{${rows.join(", ")}}`;
  return rows.length ? `[\n${rows.join("")}${"    ".repeat(depth)}]` : "[]";
}
