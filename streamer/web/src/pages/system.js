/** How the installation works: its parts, its workers, its queues, what it costs. */
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { api } from "../api.js";
import { bytes, count, percent, plural, short } from "../format.js";
import { byLabel, parseMetrics, rates, row, total } from "../metrics.js";
import { streamPath } from "../router.js";
import { camera, phase, session, shownIds, streamIds } from "../store.js";
import { ago, now, secondsSince } from "../time.js";
import { Chart } from "../ui/chart.js";
import { html } from "../ui/html.js";
import { Top } from "../ui/shell.js";
import { Empty, Failed, Sentence, Skeleton } from "../ui/states.js";

const PERIOD = 2000;
const KEPT = 450;

// kept while other pages are shown, so that coming back shows the past
const history = signal([]);
const reading = signal(null);
const failure = signal(null);
const health = signal(null);
let previous = null;
let busy = false;

async function read() {
  if (busy) return; // the service is slow: do not pile up calls
  busy = true;
  try {
    const [text, ready] = await Promise.all([api.metrics(), api.ready()]);
    const metrics = parseMetrics(text);
    const time = Date.now();
    health.value = ready;
    if (previous) {
      const seconds = (time - previous.time) / 1000;
      history.value = [...history.value, { time: time / 1000, ...row(previous.metrics, metrics, seconds) }].slice(-KEPT);
      const cpu = rates(byLabel(previous.metrics.streamer_worker_cpu_seconds, "worker"), byLabel(metrics.streamer_worker_cpu_seconds, "worker"), seconds);
      reading.value = { metrics, cpu };
    } else reading.value = { metrics, cpu: {} };
    previous = { metrics, time };
    failure.value = null;
  } catch (error) {
    failure.value = error;
  }
  busy = false;
}

function Parts() {
  const parts = health.value?.parts ?? [];
  return html`<section class="panel" aria-labelledby="parts-title"><header><h2 id="parts-title" class="grow">Parts</h2>
      <span class=${`tag ${health.value?.status === "ready" ? "" : "warning"}`}>${health.value?.status === "ready" ? "All work" : "Not all work"}</span></header>
    <ul class="rows">${parts.map((part) => html`<li key=${part.name} class="rowline">
      <span class=${`dot ${part.state === "loading" ? "waiting" : part.up ? (part.state === "impaired" ? "stale" : "live") : "failed"}`} /><span class="part">${part.name}</span>
      <span class="soft grow">${part.message ? html`<${Sentence} text=${part.message} />` : part.state === "loading" ? "Loading its model" : "Works"}</span>
      ${!part.up && part.last_seen_at && html`<span class="soft small number">seen ${ago(secondsSince(part.last_seen_at, now.value))}</span>`}</li>`)}</ul></section>`;
}

function Workers({ metrics, cpu }) {
  const of = (name) => byLabel(metrics[`streamer_worker_${name}`], "worker");
  const slots = of("slots"), busy = of("slots_busy"), memory = of("resident_bytes"), running = of("running"), used = of("kv_tokens"), reusable = of("kv_reusable"), room = of("kv_cache_tokens"), prefix = of("prefix_hit_rate"), tiles = of("tile_hit_rate");
  const names = Object.keys(slots).sort();
  if (!names.length) return html`<section class="panel"><header><h2>Workers</h2></header><${Empty} small icon="system" title="No worker runs" text=${html`Start the service with <code>streamer up</code>.`} /></section>`;
  return html`<section class="panel" aria-labelledby="workers-title"><header><h2 id="workers-title" class="grow">Workers</h2></header>
    <div class="scroll" tabindex="0" role="region" aria-label="Workers"><table><thead><tr><th scope="col">Name</th><th scope="col">Busy</th><th scope="col">CPU</th><th scope="col">Memory</th><th scope="col">Requests</th><th scope="col">KV cache</th><th scope="col">From cache</th></tr></thead>
    <tbody>${names.map((name) => html`<tr key=${name}><th scope="row"><code>${name}</code></th>
      <td class="number">${count(busy[name])} of ${count(slots[name])}</td>
      <td class="number">${cpu[name] === undefined ? "–" : percent(cpu[name])}</td>
      <td class="number">${memory[name] === undefined ? "–" : bytes(memory[name])}</td>
      <td class="number">${running[name] === undefined ? "–" : count(running[name])}</td>
      <td class="number">${room[name] ? html`<span class="meter" role="img" aria-label=${`${percent(used[name] / room[name])} in use, ${percent(reusable[name] / room[name])} reusable`}><i style=${{ width: percent(used[name] / room[name]).replace(" ", "") }} /><i class="reusable" style=${{ width: percent((reusable[name] ?? 0) / room[name]).replace(" ", "") }} /></span>` : "–"}</td>
      <td class="number">${prefix[name] === undefined ? "–" : `${percent(prefix[name])} of tokens, ${percent(tiles[name] ?? 0)} of tiles`}</td></tr>`)}</tbody></table></div></section>`;
}

const CAUSES = [["late", "Too late"], ["decode_error", "Damaged"], ["redis_away", "Redis away"], ["redis_full", "Redis full"], ["archive", "Archive"]];

function Streams() {
  const streams = shownIds.value.map((id) => camera(id).stream.value).filter(Boolean).sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
  if (!streams.length) return null;
  const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null);
  return html`<section class="panel" aria-labelledby="streams-title"><header><h2 id="streams-title" class="grow">Cameras</h2><span class="soft small">frames dropped by cause</span></header>
    <div class="scroll" tabindex="0" role="region" aria-label="Cameras"><table><thead><tr><th scope="col">Name</th><th scope="col">Sampled</th><th scope="col">Tokens a frame</th>${CAUSES.map(([cause, label]) => html`<th key=${cause} scope="col">${label}</th>`)}<th scope="col">Windows not asked</th><th scope="col">Reconnects</th></tr></thead>
    <tbody>${streams.map((stream) => {
      const spent = mean(camera(stream.id).costs.value);
      return html`<tr key=${stream.id}><th scope="row"><a class="link" href=${streamPath(stream.name)}>${stream.name}</a></th>
        <td class="number">${short(stream.counters.sampled)}</td><td class="number">${spent === null ? "–" : Math.round(spent)}</td>
        ${CAUSES.map(([cause]) => html`<td key=${cause} class=${`number ${stream.counters.dropped[cause] ? "warn" : "soft"}`}>${short(stream.counters.dropped[cause] ?? 0)}</td>`)}
        <td class=${`number ${stream.counters.clips_dropped ? "warn" : "soft"}`}>${short(stream.counters.clips_dropped)}</td><td class="number">${short(stream.counters.reconnects)}</td></tr>`;
    })}</tbody></table></div></section>`;
}

export default function System() {
  useEffect(() => {
    if (phase.value !== "ready") return;
    read();
    const timer = setInterval(() => document.hidden || read(), PERIOD);
    return () => clearInterval(timer);
  }, [phase.value]);
  const known = reading.value;
  const rows = history.value;
  const times = rows.map((each) => each.time);
  const line = (label, color, name) => ({ label, color, values: rows.map((each) => each[name]) });
  const costs = streamIds.value.flatMap((id) => camera(id).costs.value.slice(-10));
  const spent = costs.length ? costs.reduce((sum, value) => sum + value, 0) / costs.length : null;
  const cores = rows.at(-1)?.cpu;
  return html`
    <${Top} title="System"><span class="grow" />
      <a class="button plain" href="/docs">API reference</a><a class="button plain wide" href="/metrics" target="_blank">Metrics</a><//>
    ${failure.value && !known ? html`<${Failed} error=${failure.value} retry=${read} />`
      : !known ? html`<div class="system" key="loading" aria-busy="true"><div class="panel body"><${Skeleton} lines=${2} /></div>
        <div class="charts">${[1, 2, 3, 4].map((chart) => html`<div class="panel chart" key=${chart}><${Skeleton} lines=${2} /></div>`)}</div></div>`
      : html`<div class="system" key="loaded">
        <dl class="figures">
          <div><dt>Cameras</dt><dd class="number">${count(shownIds.value.length)}</dd></div>
          <div><dt>Workers</dt><dd class="number">${count(total(known.metrics.streamer_workers) ?? 0)}</dd></div>
          <div><dt>Processors in use</dt><dd class="number">${cores === undefined || cores === null ? "–" : cores.toFixed(1)}</dd></div>
          <div><dt>Tokens a frame</dt><dd class="number">${spent === null ? "–" : Math.round(spent)}</dd></div>
          <div><dt>Waiting</dt><dd class="number">${count(total(known.metrics.streamer_queue_jobs) ?? 0)}</dd></div>
        </dl>
        <div class="charts">
          <${Chart} title="Processors" times=${times} format=${(value) => value.toFixed(value < 10 ? 1 : 0)} lines=${[line("in use", "accent", "cpu")]} />
          <${Chart} title="Tokens a second" whole times=${times} format=${(value) => short(value)} lines=${[line("read", "accent", "prompt"), line("written", "good", "completion")]} />
          <${Chart} title="Requests that wait" whole times=${times} format=${(value) => short(value)} lines=${[line("questions", "bad", "queries"), line("watches", "accent", "watches"), line("recordings", "good", "files")]} />
          <${Chart} title="Memory of the workers" whole times=${times} format=${(value) => bytes(Math.round(value))} lines=${[line("resident", "accent", "memory")]} />
        </div>
        <${Parts} />
        <${Workers} metrics=${known.metrics} cpu=${known.cpu} />
        <${Streams} />
        <p class="soft small">Version ${known.metrics.streamer_info?.[0]?.labels.version ?? "unknown"}${session.value?.key ? ` · signed in with the key “${session.value.key}”` : ""} · ${plural(rows.length, "reading")}</p>
      </div>`}`;
}
