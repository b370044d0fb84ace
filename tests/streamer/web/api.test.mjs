import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after, test } from "node:test";
import { api, call, onUnauthorized } from "../../../streamer/web/src/api.js";

const server = createServer((request, response) => {
  if (request.url === "/cut-off") {
    response.writeHead(200, { "Content-Type": "application/json", "Content-Length": "100" });
    response.write('{"streams": [');
    setImmediate(() => response.destroy());
  } else if (request.url === "/gone") response.writeHead(204).end();
  else if (request.url === "/proxy") response.writeHead(502).end("<h1>Bad gateway</h1>");
  else if (request.url === "/key") response.writeHead(401).end('{"error": {"code": "UNAUTHENTICATED", "message": "Send a key."}}');
  else response.writeHead(200).end('{"streams": []}');
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
after(() => server.close());
const at = (path) => `http://127.0.0.1:${server.address().port}${path}`;

test("an answer is read, and none is null", async () => {
  assert.deepEqual(await call("GET", at("/v1/streams")), { streams: [] });
  assert.equal(await call("DELETE", at("/gone")), null);
});

test("a connection that is lost within an answer is a failure that may pass", async () => {
  await assert.rejects(call("GET", at("/cut-off")), { code: "UNREACHABLE", status: 0, passes: true });
});

test("a proxy's page is a failure that may pass", async () => {
  await assert.rejects(call("GET", at("/proxy")), { code: "UNKNOWN", status: 502, passes: true });
});

test("a 401 asks for a key, unless the caller does", async () => {
  let asked = 0;
  onUnauthorized(() => asked++);
  await assert.rejects(call("GET", at("/key")), { code: "UNAUTHENTICATED", message: "Send a key.", passes: false });
  await assert.rejects(call("GET", at("/key"), undefined, { quiet: true }));
  assert.equal(asked, 1);
});

test("a call that the page gave up is no failure of the service", async () => {
  const stop = new AbortController();
  stop.abort();
  await assert.rejects(call("GET", at("/v1/streams"), undefined, { signal: stop.signal }), { name: "AbortError" });
});

test("a search names what was given only", async () => {
  const asked = [];
  globalThis.fetch = async (path) => (asked.push(path), new Response('{"results": []}'));
  await api.results({ q: "a b", stream: null, kind: "", limit: 40 });
  assert.deepEqual(asked, ["/v1/results?q=a+b&limit=40"]);
});
