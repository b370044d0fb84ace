import assert from "node:assert/strict";
import { test } from "node:test";
import { match, streamPath } from "../../../streamer/web/src/router.js";

test("each address has its page", () => {
  assert.deepEqual(match("/"), { page: "wall", params: {} });
  assert.deepEqual(match("/streams/yard"), { page: "stream", params: { name: "yard" } });
  assert.deepEqual(match("/incidents/inc_1/"), { page: "incidents", params: { id: "inc_1" } });
  assert.equal(match("/system").page, "system");
});

test("other addresses have none", () => {
  for (const path of ["/streams", "/streams/a/b", "/streams/%E0%A4%A", "/admin", "//evil"]) assert.equal(match(path).page, "missing", path);
});

test("names survive the way through an address", () => {
  const path = streamPath("back door?", { since: "a b" });
  assert.equal(path, "/streams/back%20door%3F?since=a+b");
  assert.deepEqual(match(path.split("?")[0]).params, { name: "back door?" });
});
