// Drives the `ai` package over @ai-sdk/openai and @ai-sdk/anthropic, as driving.py drives the others.
import { createInterface } from "node:readline";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { embedMany, generateObject, generateText, jsonSchema, stepCountIs, streamObject, streamText, tool } from "ai";

const KEY = `sk-${process.argv[2]}`;
const PROMPT = "Where does the fake live?";
const HURRY_MS = 1000;
const NOT_STORED = { openai: { store: false } };
const schema = jsonSchema({
  type: "object",
  properties: { city: { type: "string" }, degrees: { type: "number" } },
  required: ["city", "degrees"],
  additionalProperties: false,
});
const forecast = {
  description: "tells",
  inputSchema: jsonSchema({
    type: "object",
    properties: { city: { type: "string" }, days: { type: "integer" } },
    required: ["city", "days"],
    additionalProperties: false,
  }),
};
const tools = { forecast: tool(forecast) };
const runTools = { forecast: tool({ ...forecast, execute: ({ city }) => `rain in ${city}` }) };

globalThis.AI_SDK_LOG_WARNINGS = false;

// Writes down what comes over the wire, as it is read; fetch has decoded it.
function recording(exchanges) {
  return async (input, init) => {
    const response = await fetch(input, init);
    const exchange = {
      status: response.status,
      media_type: response.headers.get("content-type"),
      cache: response.headers.get("x-ai-cache-status"),
      body: "",
    };
    exchanges.push(exchange);
    if (!response.body) return response;
    const decoder = new TextDecoder();
    const tee = new TransformStream({
      transform(piece, controller) {
        exchange.body += decoder.decode(piece, { stream: true });
        controller.enqueue(piece);
      },
    });
    const { status, headers } = response;
    return new Response(response.body.pipeThrough(tee), { status, headers });
  };
}

// JSON of a result, without the clock and what only tells how the answer came.
function dumped(value) {
  const hidden = new Set(["timestamp", "headers", "request", "requestHeaders", "responseHeaders", "stack"]);
  const keep = (name, inner) => {
    if (hidden.has(name)) return undefined;
    return inner instanceof Error ? described(inner) : inner;
  };
  return JSON.parse(JSON.stringify(value, keep) ?? "null");
}

function described(error) {
  return { kind: error.name, kinds: [error.name], status: error.statusCode ?? null, message: error.message };
}

function written(result) {
  const { text, content, toolCalls, toolResults, finishReason, usage, totalUsage, response, steps } = result;
  return { text, content, toolCalls, toolResults, finishReason, usage, totalUsage, response, steps: steps.length };
}

const quiet = { maxRetries: 0, onError: () => {} };

const generated = (options = {}) => async (model, take) => {
  take(written(await generateText({ model, prompt: PROMPT, maxRetries: 0, ...options })));
};

const streamed = (options = {}) => async (model, take) => {
  for await (const part of streamText({ model, prompt: PROMPT, ...quiet, ...options }).fullStream) take(part);
};

const objectOf = (options = {}) => async (model, take) => {
  const { object, usage, finishReason, response } = await generateObject({
    model, schema, prompt: PROMPT, maxRetries: 0, ...options,
  });
  take({ object, usage, finishReason, response });
};

const objectStream = (options = {}) => async (model, take) => {
  for await (const part of streamObject({ model, schema, prompt: PROMPT, ...quiet, ...options }).fullStream) take(part);
};

// One piece of the text, then the caller leaves.
const left = (options = {}) => async (model, take) => {
  const leaving = new AbortController();
  const result = streamText({ model, prompt: PROMPT, abortSignal: leaving.signal, ...quiet, ...options });
  for await (const part of result.fullStream) {
    if (!leaving.signal.aborted) take(part);
    if (part.type === "text-delta") leaving.abort();
  }
};

const hurried = (options = {}) => async (model, take) => {
  await generated({ abortSignal: AbortSignal.timeout(HURRY_MS), ...options })(model, take);
};

const embedded = () => async (model, take) => {
  const { embeddings, usage } = await embedMany({ model, values: ["one", "two"], maxRetries: 0 });
  take({ embeddings, usage });
};

const loop = { tools: runTools, stopWhen: stepCountIs(3) };
const kept = { providerOptions: NOT_STORED };

const TABLE = {
  "chat.plain": generated(),
  "chat.gzip": generated(),
  "chat.flaky": generated({ maxRetries: 1 }),
  "chat.stream": streamed(),
  "chat.tools": generated({ tools }),
  "chat.tools.stream": streamed({ tools }),
  "chat.tools.loop": generated(loop),
  "chat.schema": objectOf(),
  "chat.schema.stream": objectStream(),
  "chat.http_400": generated(),
  "chat.http_401": generated(),
  "chat.http_429": generated(),
  "chat.http_500": generated(),
  "chat.http_500.stream": streamed(),
  "chat.fault": streamed(),
  "chat.cut": streamed(),
  "chat.reset": streamed(),
  "chat.slow": left(),
  "chat.hang": hurried(),
  "completions.plain": generated(),
  "completions.stream": streamed(),
  "completions.http_400": generated(),
  "responses.plain": generated(kept),
  "responses.stream": streamed(kept),
  "responses.tools": generated({ tools, ...kept }),
  "responses.tools.stream": streamed({ tools, ...kept }),
  "responses.tools.loop": generated({ ...loop, ...kept }),
  "responses.schema": objectOf(kept),
  "responses.stateful": generated(),
  "responses.stateful.stream": streamed(),
  "responses.http_400": generated(kept),
  "responses.http_500": streamed(kept),
  "responses.fault": streamed(kept),
  "responses.cut": streamed(kept),
  "responses.slow": left(kept),
  "messages.plain": generated(),
  "messages.stream": streamed(),
  "messages.tools": generated({ tools }),
  "messages.tools.stream": streamed({ tools }),
  "messages.tools.loop": generated(loop),
  "messages.http_400": generated(),
  "messages.http_429": streamed(),
  "messages.fault": streamed(),
  "messages.cut": streamed(),
  "messages.reset": streamed(),
  "messages.slow": left(),
  "embeddings.plain": embedded(),
  "embeddings.http_400": embedded(),
};

function models(url, fetched) {
  const openai = createOpenAI({ baseURL: `${url}/v1`, apiKey: KEY, fetch: fetched });
  const anthropic = createAnthropic({ baseURL: `${url}/v1`, apiKey: KEY, fetch: fetched });
  return {
    chat: openai.chat,
    completions: openai.completion,
    responses: openai, // what the SDK takes when nothing is said
    messages: anthropic,
    embeddings: openai.embedding,
  };
}

async function runCase(run, model, exchanges) {
  const objects = [];
  let error = null;
  try {
    await run(model, (value) => objects.push(dumped(value)));
  } catch (failure) {
    error = described(failure);
  }
  return { objects, exchanges: exchanges.splice(0), error };
}

for await (const line of createInterface({ input: process.stdin })) {
  const exchanges = [];
  const made = models(line.trim(), recording(exchanges));
  const report = {};
  for (const [name, run] of Object.entries(TABLE)) {
    report[name] = await runCase(run, made[name.split(".")[0]](`m-${name}`), exchanges);
  }
  process.stdout.write(`${JSON.stringify(report)}\n`);
}
