/** Server-sent events of one response, as they come. */
import { errorOf, request } from "./api.js";

/** The events in a text, and what is left of the last one that is not complete. */
export function parseEvents(text) {
  const blocks = text.replaceAll("\r\n", "\n").split("\n\n");
  const rest = blocks.pop();
  const events = [];
  for (const block of blocks) {
    const event = { name: "message", data: "" };
    for (const line of block.split("\n")) {
      const at = line.indexOf(":");
      if (at <= 0) continue;
      const value = line.slice(at + 1).replace(/^ /, "");
      if (line.slice(0, at) === "event") event.name = value;
      if (line.slice(0, at) === "data") event.data += (event.data && "\n") + value;
    }
    if (event.data) events.push(event);
  }
  return { events, rest };
}

/** POST `body`, and hand each event of the response to `run(name, data)`. */
export async function postForEvents(path, body, run, { signal } = {}) {
  const response = await request("POST", path, body, { signal });
  if (!response.ok) throw await errorOf(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const { events, rest } = parseEvents(text + value);
    text = rest;
    for (const event of events) run(event.name, JSON.parse(event.data));
  }
}
