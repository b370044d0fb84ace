import assert from "node:assert/strict";
import { test } from "node:test";
import { suggestedName, withStep } from "../../../streamer/web/src/pages/attach.js";
import { safeNext } from "../../../streamer/web/src/pages/login.js";
import { parseEvents } from "../../../streamer/web/src/sse.js";
import { cameraName, withUser } from "../../../streamer/web/src/ui/discover.js";
import { nearest, outages, selection } from "../../../streamer/web/src/ui/timeline.js";
import { bodyOf, formOf } from "../../../streamer/web/src/ui/watches.js";

test("signing in leads to an address of this page only", () => {
  assert.equal(safeNext("/search?q=car"), "/search?q=car");
  for (const next of [null, "", "//evil.example", "/\\evil.example", "https://evil.example", "javascript:alert(1)", "/login?next=/"]) assert.equal(safeNext(next), "/", next);
});

test("a name comes from the address, without its password", () => {
  assert.equal(suggestedName("rtsp://user:s3cret@192.168.1.20:554/yard.sdp?x=1"), "yard");
  assert.equal(suggestedName("rtsp://user:s3cret@192.168.1.20:554/stream1"), "192.168.1.20");
  assert.equal(cameraName({ name: "Front door", streams: [{}, {}] }, { name: "main" }), "Front-door-main");
});

test("the user of a search is put into the address", () => {
  assert.equal(withUser("rtsp://10.0.0.2/main", "ad:min", "p@ss"), "rtsp://ad%3Amin:p%40ss@10.0.0.2/main");
  assert.equal(withUser("rtsp://10.0.0.2/main", "", "p"), "rtsp://10.0.0.2/main");
});

test("a step of the probe ends where it began", () => {
  const begun = withStep(withStep([], "begun", { name: "name" }), "begun", { name: "connect" });
  assert.deepEqual(withStep(begun, "step", { name: "connect", ok: false, detail: "refused", ms: 3 }).map(({ name, state }) => [name, state]), [["name", "begun"], ["connect", "failed"]]);
});

test("server-sent events are read when they are complete", () => {
  const { events, rest } = parseEvents('event: step\r\ndata: {"a":\r\ndata: 1}\r\n\r\n: ping\n\nevent: rep');
  assert.deepEqual(events, [{ name: "step", data: '{"a":\n1}' }]);
  assert.equal(rest, "event: rep");
});

test("of a watch only what was changed is sent", () => {
  const watch = { prompt: "Who?", window: 10, alert: { severity: "warning", title: "Person", raise: { probability: 0.7, after: 2 } } };
  assert.deepEqual(bodyOf({ ...formOf(watch), window: "4" }, watch), { window: 4 });
  assert.deepEqual(bodyOf({ ...formOf(watch), probability: "0.9" }, watch), { alert: { severity: "warning", raise: { probability: 0.9, after: 2 }, title: "Person" } });
  assert.deepEqual(bodyOf({ ...formOf(null), prompt: " Any? ", kind: "choice" }), { prompt: "Any?", window: 10, response_format: { type: "choice", choices: ["yes", "no"] } });
});

test("a drag selects whole seconds within the timeline, and a short one nothing", () => {
  assert.deepEqual(selection(9_500, 2_300, 0, 9_000), { since: 2000, until: 9000 });
  assert.equal(selection(2_300, 2_900, 0, 9_000), null);
});

test("a click finds the nearest result, but none that is far away", () => {
  const at = (second) => new Date(second * 1000).toISOString();
  const results = [{ id: "b", start: at(20), end: at(30) }, { id: "a", start: at(0), end: at(10) }];
  assert.equal(nearest(results, 25_000, 2000).id, "b");
  assert.equal(nearest(results, 11_000, 2000).id, "a");
  assert.equal(nearest(results, 14_000, 2000), null);
});

test("an outage lasts from the loss of the connection until the next state", () => {
  const at = (second, state, previous) => ({ time: new Date(second * 1000).toISOString(), state, previous });
  assert.deepEqual(outages([at(1, "reconnecting", "running"), at(2, "running", "reconnecting"), at(8, "failed", "running")], 0, 10_000), [[1000, 2000], [8000, 10_000]]);
  assert.deepEqual(outages([at(3, "running", "reconnecting")], 0, 10_000), [[0, 3000]]);
});
