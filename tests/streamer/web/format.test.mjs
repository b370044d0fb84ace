import assert from "node:assert/strict";
import { test } from "node:test";
import * as format from "../../../streamer/web/src/format.js";

test("numbers are short and exact where that matters", () => {
  assert.equal(format.count(1204), "1,204");
  assert.equal(format.plural(1, "frame"), "1 frame");
  assert.equal(format.plural(3, "frame"), "3 frames");
  assert.deepEqual([0, 940, 1200, 12_345, 999_600, 3_400_000].map(format.short), ["0", "940", "1.2k", "12k", "1M", "3.4M"]);
  assert.equal(format.bytes(640), "640 B");
  assert.equal(format.bytes(12_000_000), "12 MB");
  assert.equal(format.bitRate(2_350_000), "2.4 Mbit/s");
  assert.equal(format.milliseconds(812), "812 ms");
  assert.equal(format.milliseconds(1840), "1.8 s");
});

test("the cost of an answer names frames, tiles, tokens and time", () => {
  const result = { frames: 4, tiles: 7, prompt_tokens: 830, completion_tokens: 20, cached_tokens: 600, total_ms: 1800 };
  assert.equal(format.cost(result), "4 frames · 7 tiles · 850 tokens (600 cached) · 1.8 s");
  assert.equal(format.cost({ ...result, frames: 1, tiles: 1, cached_tokens: 0 }), "1 frame · 1 tile · 850 tokens · 1.8 s");
  assert.equal(format.cost({ prompt_tokens: 0 }), "");
  assert.equal(format.cost(null), "");
});

test("a result says its answer, its probability or its error", () => {
  assert.equal(format.saying({ kind: "caption", text: "A car." }), "A car.");
  assert.equal(format.saying({ kind: "alert", text: "yes", data: { yes: true, probability: 0.934 } }), "Yes, 93 %");
  assert.equal(format.saying({ kind: "error", error: { message: "Gone." } }), "Gone.");
  assert.equal(format.saying(null), "");
});

test("pieces of an answer are joined once each, whatever order repeats", () => {
  let text = "";
  for (const [at, piece] of [[0, "A red "], [6, "car 🚗"], [6, "car 🚗"], [11, " stops."]]) text = format.withPiece(text, at, piece);
  assert.equal(text, "A red car 🚗 stops.");
});

test("words of a search are marked, and nothing else", () => {
  assert.deepEqual(format.marked("A red car", "car"), [["A red ", false], ["car", true]]);
  assert.deepEqual(format.marked("a.b", "."), [["a.b", false]]);
  assert.deepEqual(format.marked("Cars", "car*"), [["Car", true], ["s", false]]);
});

test("what was typed finds beginnings first, letters in order, and nothing else", () => {
  assert.ok(format.score("gat", "gate") > format.score("gat", "the navigator"));
  assert.ok(format.score("ld", "loading-dock") > 0);
  assert.equal(format.score("xyz", "gate"), 0);
  assert.equal(format.score("", "gate"), 1);
});
