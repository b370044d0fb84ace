import assert from "node:assert/strict";
import { test } from "node:test";
import { byLabel, parseMetrics, rates, row, total } from "../../../streamer/web/src/metrics.js";

const reading = (text) => parseMetrics(text);

test("samples are read with their labels, comments are not", () => {
  const found = reading(String.raw`# TYPE streamer_queue_jobs gauge
streamer_queue_jobs{queue="watches:demo"} 3
streamer_queue_jobs{queue="a \"b\" \\ c"} 1.5e1
streamer_workers 2
`);
  assert.deepEqual(found.streamer_queue_jobs, [{ labels: { queue: "watches:demo" }, value: 3 }, { labels: { queue: 'a "b" \\ c' }, value: 15 }]);
  assert.deepEqual(found.streamer_workers, [{ labels: {}, value: 2 }]);
});

test("values of one label are added, and no value is no number", () => {
  const { tokens } = reading('tokens{worker="1",kind="a"} 2\ntokens{worker="1",kind="b"} 3\ntokens{worker="2",kind="a"} 4');
  assert.deepEqual(byLabel(tokens, "worker"), { 1: 5, 2: 4 });
  assert.equal(total(tokens), 9);
  assert.equal(total(undefined), null);
});

test("a counter that was reset rises from zero, and a new one has no rate yet", () => {
  assert.deepEqual(rates({ a: 10, b: 90 }, { a: 14, b: 6, c: 5 }, 2), { a: 2, b: 3 });
  assert.deepEqual(rates({ a: 10 }, { a: 14 }, 0), {});
});

test("the charts show the rates and the queues of two readings", () => {
  const before = reading('streamer_worker_cpu_seconds{worker="1"} 10\nstreamer_worker_cpu_seconds{worker="2"} 20');
  const after = reading(`streamer_worker_cpu_seconds{worker="1"} 12
streamer_worker_cpu_seconds{worker="2"} 21
streamer_worker_resident_bytes{worker="1"} 100
streamer_queue_jobs{queue="queries"} 1
streamer_queue_jobs{queue="queries:demo"} 2
streamer_queue_jobs{queue="watches"} 4`);
  assert.deepEqual(row(before, after, 2), { cpu: 1.5, memory: 100, prompt: null, completion: null, queries: 3, watches: 4, files: 0 });
});
