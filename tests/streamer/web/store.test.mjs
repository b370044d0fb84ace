import assert from "node:assert/strict";
import { test } from "node:test";
import { camera, condition, dropStream, interval, idOf, newestFrameTime, putStream, rank, withIncident, withResult } from "../../../streamer/web/src/store.js";

const stream = (fields) => ({ state: "running", live: true, sampling: { mode: "fps", fps: 1 }, error: null, ...fields });
const AT = 1_000_000_000_000;

test("a stream is stale when its newest picture is older than some intervals", () => {
  assert.equal(condition(stream(), AT - 2000, AT), "live");
  assert.equal(condition(stream(), AT - 8000, AT), "stale");
  assert.equal(condition(stream({ sampling: { mode: "fps", fps: 0.1 } }), AT - 20_000, AT), "live");
  assert.equal(condition(stream({ live: false }), AT - 60_000, AT), "live");
});

test("states have one word each", () => {
  assert.equal(condition(stream({ state: "reconnecting" }), AT, AT), "lost");
  assert.equal(condition(stream({ state: "connecting" }), null, AT), "waiting");
  assert.equal(condition(stream({ state: "connecting", error: { code: "X" } }), null, AT), "lost");
  assert.equal(condition(stream({ state: "failed" }), AT, AT), "failed");
  assert.equal(condition(stream({ state: "paused" }), AT, AT), "paused");
  assert.equal(condition(stream({ state: "a later one" }), AT, AT), "live");
});

test("trouble comes first, incidents before it", () => {
  const order = ["failed", "lost", "stale", "waiting", "live", "paused", "ended"].map((state) => rank(state, false));
  assert.deepEqual([...order].sort((a, b) => a - b), order);
  assert.ok(rank("ended", true) < rank("failed", false));
});

test("the newest of what is reported and what was shown counts", () => {
  const reported = { last_frame_at: new Date(AT).toISOString() };
  assert.equal(newestFrameTime(reported, AT - 5), AT);
  assert.equal(newestFrameTime(reported, AT + 5), AT + 5);
  assert.equal(newestFrameTime({ last_frame_at: null }, null), null);
});

test("the longest pause between frames is that of the sampling", () => {
  assert.equal(interval(stream()), 1);
  assert.equal(interval(stream({ sampling: { mode: "change", threshold: 0.1, min_interval: 0.2, max_interval: 10 } })), 10);
});

test("results are kept once, newest first, and not without end", () => {
  let results = [];
  for (const number of [1, 3, 2, 3]) results = withResult(results, { id: `res_${number}`, created_at: `2026-11-26T08:00:0${number}.000Z` });
  assert.deepEqual(results.map((each) => each.id), ["res_3", "res_2", "res_1"]);
  for (let number = 100; number < 300; number++) results = withResult(results, { id: `res_${number}`, created_at: `2026-11-26T09:00:00.${number}Z` });
  assert.equal(results.length, 60);
  assert.equal(results[0].id, "res_299");
});

test("an older version of an incident changes nothing", () => {
  const known = withIncident(new Map(), { id: "inc_1", version: 3, state: "resolved" });
  assert.equal(withIncident(known, { id: "inc_1", version: 2, state: "open" }), known);
  assert.equal(withIncident(known, { id: "inc_1", version: 4, state: "open" }).get("inc_1").state, "open");
});

test("of too many incidents, the resolved one that changed first is forgotten", () => {
  let known = withIncident(new Map(), { id: "inc_open", version: 1, state: "open" });
  for (let number = 0; number < 2100; number++) known = withIncident(known, { id: `inc_${number}`, version: 1, state: "resolved" });
  known = withIncident(known, { id: "inc_101", version: 2, state: "resolved" });
  known = withIncident(known, { id: "inc_new", version: 1, state: "open" });
  assert.equal(known.size, 2000);
  assert.ok(known.has("inc_open") && known.has("inc_101") && known.has("inc_new"));
  assert.ok(!known.has("inc_100") && !known.has("inc_102"));
});

test("a stream that is detached is forgotten", () => {
  putStream({ id: "str_1", name: "gate" });
  const before = camera("str_1");
  assert.equal(idOf("gate"), "str_1");
  dropStream("str_1");
  assert.equal(idOf("gate"), null);
  assert.notEqual(camera("str_1"), before);
});
