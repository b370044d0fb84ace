import assert from "node:assert/strict";
import { test } from "node:test";
import { effect, signal } from "@preact/signals-core";
import { beforeFrame } from "../../../streamer/web/src/frame.js";

function drawnFrames() {
  const frames = [];
  globalThis.requestAnimationFrame = (draw) => frames.push(draw);
  globalThis.cancelAnimationFrame = () => {};
  return frames;
}

test("changes that come between two frames are shown once, in their order", () => {
  const frames = drawnFrames();
  const said = signal("");
  let shown = 0;
  effect(() => (said.value, shown++));
  for (const letter of "abc") beforeFrame(() => (said.value += letter));
  assert.deepEqual([said.value, shown, frames.length], ["", 1, 1]);
  frames.shift()();
  assert.deepEqual([said.value, shown], ["abc", 2]);
});

test("a page that is not shown takes changes over all the same", async () => {
  drawnFrames();
  await new Promise((taken) => beforeFrame(taken));
});

test("of changes that come faster than frames, few wait", () => {
  const frames = drawnFrames();
  let taken = 0;
  for (let change = 0; change < 1200; change++) beforeFrame(() => taken++);
  assert.equal(taken, 1000);
  frames.at(-1)();
  assert.equal(taken, 1200);
});
