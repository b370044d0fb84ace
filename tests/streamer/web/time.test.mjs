import assert from "node:assert/strict";
import { test } from "node:test";
import * as time from "../../../streamer/web/src/time.js";

test("ages are short", () => {
  assert.deepEqual([0, 1.2, 3, 59, 60, 719, 3599, 7200, 172_800].map(time.ago),
    ["now", "now", "3 s ago", "59 s ago", "1 min ago", "12 min ago", "1 h ago", "2 h ago", "2 d ago"]);
  assert.equal(time.ago(null), "");
});

test("an age is never negative, and null for no moment", () => {
  assert.equal(time.secondsSince("2026-11-26T08:00:00.000Z", Date.parse("2026-11-26T08:00:03.500Z")), 3.5);
  assert.equal(time.secondsSince("2026-11-26T08:00:00.000Z", Date.parse("2026-11-26T07:00:00.000Z")), 0);
  assert.equal(time.secondsSince(null, 0), null);
});

test("the clock of the service counts, not that of the machine", () => {
  time.setServerTime(new Date(Date.now() + 3_600_000).toISOString());
  assert.ok(Math.abs(time.serverNow() - Date.now() - 3_600_000) < 2000);
  time.setServerTime("nonsense");
  assert.ok(Math.abs(time.serverNow() - Date.now() - 3_600_000) < 2000);
});

test("a range names its day only once", () => {
  const start = new Date(2026, 10, 26, 14, 2, 9).getTime();
  assert.equal(time.rangeText(start, start + 81_000, start), "14:02:09 – 14:03:30");
  assert.equal(time.rangeText(start, start + 81_000, start + 86_400_000), "26 Nov 14:02:09 – 14:03:30");
});

test("ticks are round, within the range, and few", () => {
  const start = Date.parse("2026-11-26T08:03:10Z");
  for (const seconds of [30, 600, 3600, 86_400, 30 * 86_400]) {
    const ticks = time.timeTicks(start, start + seconds * 1000, 8);
    assert.ok(ticks.length >= 1 && ticks.length <= 9, `${seconds}: ${ticks.length}`);
    assert.ok(ticks.every((tick) => tick >= start && tick <= start + seconds * 1000 && tick % 1000 === 0));
  }
});
