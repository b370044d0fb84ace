import assert from "node:assert/strict";
import { test } from "node:test";
import { longestPause, pace, unplayable } from "../../../streamer/web/src/video.js";

class Source {
  static isTypeSupported = (type) => type.includes("avc1");
}

test("a page says why it shows pictures", () => {
  assert.equal(unplayable("h264", Source), null);
  assert.equal(unplayable("hevc", Source), "Pictures, because this browser plays no H.265");
  assert.equal(unplayable("mjpeg", Source), "Pictures, because browsers play no MJPEG");
  assert.equal(unplayable("msmpeg4v3", Source), "Pictures, because browsers play no MSMPEG4V3");
  assert.equal(unplayable("h264", undefined), "Pictures, because this browser plays no live video");
  assert.equal(unplayable(null, Source), null);
});

test("video begins close to now, and stays there", () => {
  // a viewer who begins with a key frame of two seconds ago
  assert.deepEqual(pace(-1, [[0, 2]], 0.2), { to: 1.55, rate: 1 });
  assert.deepEqual(pace(1.5, [[0, 2]], 0.2), {});
  // a little behind: faster, until it is close again
  assert.deepEqual(pace(0.5, [[0, 2]], 0.2), { rate: 1.1 });
  assert.deepEqual(pace(1.7, [[0, 2]], 0.2), { rate: 1 });
  // far behind, or before a gap: jump
  assert.deepEqual(pace(1, [[0, 6]], 0.2), { to: 5.55, rate: 1 });
  assert.deepEqual(pace(1.9, [[0, 2], [4, 4.2]], 0.2), { to: 4, rate: 1 });
  assert.deepEqual(pace(0, [], 0.2), {});
});

test("a source that comes in bursts is played behind the longest pause", () => {
  let wait = 0.2;
  for (const pause of [6, 0, 0, 0]) wait = longestPause(wait, pause);
  assert.ok(wait > 5);
  assert.deepEqual(pace(10, [[0, 17]], wait), { rate: 1.1 });
  for (let n = 0; n < 200; n++) wait = longestPause(wait, 0.1);
  assert.ok(wait < 0.2);
});
