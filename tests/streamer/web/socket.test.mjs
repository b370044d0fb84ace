import assert from "node:assert/strict";
import { test } from "node:test";
import { LiveSocket, pauseBefore, readPicture, subscription } from "../../../streamer/web/src/socket.js";

/** Sockets and timers that a test moves by hand. */
function stage() {
  const sockets = [], timers = [], heard = [];
  const on = Object.fromEntries(
    ["event", "resync", "hello", "picture", "video", "query", "state", "refused", "unauthorized"].map((name) => [name, (...given) => heard.push([name, ...given])]),
  );
  on.alive = async () => false;
  const live = new LiveSocket("ws://here/v1/ws", on, {
    open: () => {
      const socket = { readyState: 0, sent: [], send: (text) => socket.sent.push(JSON.parse(text)), close: () => socket.onclose?.({ code: 1000 }) };
      sockets.push(socket);
      return socket;
    },
    later: (run, ms) => timers.push({ run, ms }) && timers.at(-1),
    cancel: (timer) => timer && timers.splice(0, timers.length, ...timers.filter((each) => each !== timer)),
  });
  const open = () => {
    const socket = sockets.at(-1);
    socket.readyState = 1;
    socket.onopen();
    return socket;
  };
  const say = (message) => sockets.at(-1).onmessage({ data: JSON.stringify(message) });
  const due = (most) => timers.filter((timer) => timer.ms < most).forEach((timer) => { timers.splice(timers.indexOf(timer), 1); timer.run(); });
  return { live, sockets, timers, heard, open, say, due };
}

test("a lost socket is opened again, and goes on where it was", () => {
  const { live, sockets, heard, open, say, due } = stage();
  live.start();
  assert.equal(open().sent[0].after, undefined);
  say({ type: "hello", now: "2026-11-26T08:00:00Z", position: "5-0" });
  say({ type: "event", event: { id: "6-0", type: "result.created" } });

  sockets[0].onclose({ code: 1006 });
  assert.deepEqual(heard.at(-1), ["state", "lost"]);
  due(1000);

  assert.equal(sockets.length, 2);
  assert.equal(open().sent[0].after, "6-0");
});

test("every subscription names the position, so that none loses an event", () => {
  const { live, open, say, due } = stage();
  live.start();
  const socket = open();
  say({ type: "hello", now: "2026-11-26T08:00:00Z", position: "5-0" });
  const stop = live.watch("str_1", 1, 640);
  live.watch("str_2", 5, 1280);
  due(100);
  assert.deepEqual(socket.sent.at(-1), { type: "subscribe", queries: [], after: "5-0", frames: { streams: ["str_1", "str_2"], fps: 5, width: 1280 } });

  stop();
  live.follow("qry_1");
  due(100);
  assert.deepEqual(socket.sent.at(-1).frames.streams, ["str_2"]);
  assert.deepEqual(socket.sent.at(-1).queries, ["qry_1"]);
  const sent = socket.sent.length;
  live.watch("str_2", 5, 1280); // nothing new
  due(100);
  assert.equal(socket.sent.length, sent);
});

test("a socket that needs a key is not opened again", () => {
  const { live, sockets, heard, open, due } = stage();
  live.start();
  open();
  sockets[0].onclose({ code: 4401 });
  due(60_000);
  assert.equal(sockets.length, 1);
  assert.deepEqual(heard.at(-1), ["unauthorized"]);
});

test("pauses grow to a bound, and a socket that worked begins with the shortest", () => {
  const pauses = Array.from({ length: 12 }, (_, attempt) => pauseBefore(attempt, () => 0));
  assert.deepEqual([...pauses].sort((a, b) => a - b), pauses);
  assert.equal(pauses.at(-1), 8000);
  const { live, sockets, timers, open, say, due } = stage();
  live.start();
  for (let number = 0; number < 4; number++) {
    sockets.at(-1).onclose({ code: 1006 });
    due(60_000);
  }
  open();
  say({ type: "hello", now: "2026-11-26T08:00:00Z", position: "5-0" });
  sockets.at(-1).onclose({ code: 1006 });
  assert.ok(timers.at(-1).ms < 400);
});

test("after a silence the service must answer, or the socket counts as lost", async () => {
  const { live, sockets, heard, open, due } = stage();
  live.start();
  open();
  due(60_000);
  await new Promise((resolve) => setImmediate(resolve));
  assert.ok(heard.some(([name, state]) => name === "state" && state === "lost"));
  due(1000);
  assert.equal(sockets.length, 2);
});

test("a picture is a header and its bytes", () => {
  const header = new TextEncoder().encode(JSON.stringify({ type: "frame", frame: "1-0" }));
  const buffer = new ArrayBuffer(4 + header.length + 3);
  new DataView(buffer).setUint32(0, header.length);
  new Uint8Array(buffer).set(header, 4);
  new Uint8Array(buffer).set([7, 8, 9], 4 + header.length);
  const picture = readPicture(buffer);
  assert.equal(picture.header.frame, "1-0");
  assert.deepEqual([...picture.bytes], [7, 8, 9]);
});

test("a subscription names at most a hundred streams", () => {
  const pictures = Array.from({ length: 150 }, (_, number) => ({ stream: `str_${number}`, fps: 1, width: 640 }));
  assert.equal(subscription({ pictures, queries: [], position: null }).frames.streams.length, 100);
});

test("video is asked for and handed on, and so is why there is none", () => {
  const { live, sockets, heard, open, say, due } = stage();
  live.start();
  const socket = open();
  const stop = live.film("str_1");
  due(100);
  assert.deepEqual(socket.sent.at(-1).video, { streams: ["str_1"] });

  const header = new TextEncoder().encode(JSON.stringify({ type: "video", stream_id: "str_1", start: true }));
  const message = new Uint8Array(4 + header.length + 3);
  new DataView(message.buffer).setUint32(0, header.length);
  message.set(header, 4);
  message.set([7, 8, 9], 4 + header.length);
  sockets[0].onmessage({ data: message.buffer });
  assert.equal(heard.at(-1)[0], "video");
  assert.deepEqual([heard.at(-1)[1].stream_id, [...heard.at(-1)[2]]], ["str_1", [7, 8, 9]]);
  const refusal = { type: "video.refused", stream_id: "str_1", error: { code: "TOO_MANY_LISTENERS", message: "" } };
  say(refusal);
  assert.deepEqual(heard.at(-1), ["video", refusal, null]);

  stop();
  due(100);
  assert.equal(socket.sent.at(-1).video, undefined);
});
