/** What the page knows of the installation, kept up to date by events. */
import { batch, computed, signal } from "@preact/signals-core";
import { api, ApiError, onUnauthorized } from "./api.js";
import { tokensPerFrame } from "./format.js";
import { beforeFrame } from "./frame.js";
import { address, navigate, route } from "./router.js";
import { LiveSocket } from "./socket.js";
import { now, secondsSince, setServerTime } from "./time.js";

const KEPT_RESULTS = 60;
const KEPT_COSTS = 40;
const KEPT_CHANGES = 500;
const KEPT_INCIDENTS = 2000;
const REFRESH = 15000;

/** Who uses the page: `{key, scopes}`; null: not known yet. */
export const session = signal(null);
export const mayOperate = computed(() => session.value?.scopes.includes("operate") ?? false);

/** "connecting", "open" or "lost", and since when. */
export const link = signal({ state: "connecting", since: Date.now() });

/** "loading", "ready", or the ApiError of the first load. */
export const phase = signal("loading");

/** Ids of the attached streams, in the order of the API. */
export const streamIds = signal([]);

/** Programs and servers that do not work: `{name, message}`. */
export const missing = signal([]);

/** Open incidents and those that changed lately, by id. */
export const incidents = signal(new Map());

/** Counts reloads after a gap: pages that show past things read them again. */
export const generation = signal(0);

/** What screen readers say: a new incident. */
export const announcement = signal("");

/** Ids of streams and watches that are about to be removed: they are not shown, and may come back. */
export const leaving = signal(new Set());

/** Show a stream or a watch no more, or again. */
export function setLeaving(id, leaves) {
  const ids = new Set(leaving.value);
  if (leaves) ids.add(id);
  else ids.delete(id);
  leaving.value = ids;
}

const cameras = new Map();

/**
 * The signals of a stream: `stream`, `results` (newest first), `costs`, `pictureAt`, `changes`; and what
 * follows from them: `frameTime`, `state` (see `condition`) and `incident`, the open one or null.
 */
export function camera(id) {
  let found = cameras.get(id);
  if (!found) {
    const stream = signal(null), pictureAt = signal(null);
    const frameTime = computed(() => newestFrameTime(stream.value, pictureAt.value));
    const state = computed(() => (stream.value ? condition(stream.value, frameTime.value, now.value) : "waiting"));
    const incident = computed(() => openByStream.value.get(id) ?? null);
    found = { id, stream, pictureAt, frameTime, state, incident, results: signal([]), costs: signal([]), changes: signal([]) };
    cameras.set(id, found);
  }
  return found;
}

/** The id of an attached stream by its name or id; null: there is none. */
export function idOf(name) {
  for (const id of streamIds.value) if (id === name || camera(id).stream.value?.name === name) return id;
  return null;
}

/** Streams that are attached and not about to go. */
export const shownIds = computed(() => streamIds.value.filter((id) => !leaving.value.has(id)));

export const openIncidents = computed(() =>
  [...incidents.value.values()].filter((each) => each.state === "open").sort((a, b) => (a.opened_at < b.opened_at ? 1 : -1)),
);
// the newest of each stream
const openByStream = computed(() => new Map(openIncidents.value.toReversed().map((each) => [each.stream_id, each])));
export const unseenCount = computed(() => openIncidents.value.filter((each) => !each.seen_by.length && !each.acknowledged).length);

/** When the newest frame of a stream was captured, in milliseconds; null: no frame yet. */
export function newestFrameTime(stream, pictureAt) {
  const reported = Date.parse(stream?.last_frame_at ?? "");
  const times = [reported, pictureAt].filter((time) => Number.isFinite(time));
  return times.length ? Math.max(...times) : null;
}

/** Seconds between two frames that a stream samples. */
export function interval(stream) {
  const { fps, max_interval: longest, min_interval: shortest } = stream.sampling ?? {};
  return longest ?? (fps ? 1 / fps : (shortest ?? 1) * 10);
}

/** How a stream is: "live", "stale", "waiting", "lost", "failed", "paused" or "ended". */
export function condition(stream, frameTime, at) {
  if (stream.state === "failed" || stream.state === "unreadable") return "failed";
  if (stream.state === "paused" || stream.state === "ended") return stream.state;
  if (stream.state === "reconnecting") return "lost";
  if (stream.state === "connecting" || frameTime === null) return stream.error ? "lost" : "waiting";
  if (!stream.live) return "live";
  const age = secondsSince(frameTime, at);
  return age > Math.max(5, 3 * interval(stream)) + 2 ? "stale" : "live";
}

const RANK = { failed: 1, lost: 2, stale: 3, waiting: 4, live: 5, ended: 7, paused: 6 };

/** Order of the wall: incidents, then trouble, then by name. */
export function rank(state, hasIncident) {
  return hasIncident ? 0 : (RANK[state] ?? 5);
}

/** Put a result before the others, once. */
export function withResult(results, result) {
  if (results.some((each) => each.id === result.id)) return results;
  const found = [result, ...results];
  if (found.length > 1 && found[1].created_at > result.created_at) found.sort((a, b) => (a.created_at < b.created_at ? 1 : -1));
  return found.slice(0, KEPT_RESULTS);
}

function addResult(result) {
  if (!result.stream_id) return;
  const { results, costs } = camera(result.stream_id);
  const before = results.value;
  results.value = withResult(before, result);
  const spent = tokensPerFrame(result);
  if (results.value !== before && spent !== null && result.watch_id) costs.value = [...costs.value, spent].slice(-KEPT_COSTS);
}

/** Take over an incident, unless a newer version is known; of too many, forget the resolved one that changed first. */
export function withIncident(known, incident) {
  const before = known.get(incident.id);
  if (before && before.version > incident.version) return known;
  const found = new Map(known);
  found.delete(incident.id);
  found.set(incident.id, incident);
  if (found.size > KEPT_INCIDENTS) found.delete([...found.values()].find((each) => each.state === "resolved")?.id);
  return found;
}

export function putIncident(incident) {
  incidents.value = withIncident(incidents.value, incident);
}

export function putStream(stream) {
  batch(() => {
    camera(stream.id).stream.value = stream;
    if (!streamIds.value.includes(stream.id)) streamIds.value = [...streamIds.value, stream.id];
  });
}

/** Forget a stream that is detached. */
export function dropStream(id) {
  streamIds.value = streamIds.value.filter((each) => each !== id);
  cameras.delete(id);
}

let refreshTimer;

function refreshSoon() {
  clearTimeout(refreshTimer);
  refreshTimer = setTimeout(refreshStreams, 400);
}

function handle(event) {
  if (event.type === "result.created") addResult(event.data);
  else if (event.type.startsWith("incident.")) {
    putIncident(event.data);
    if (event.type === "incident.opened") {
      announcement.value = `New incident on ${event.data.stream_name}: ${event.data.title}`;
    }
  } else if (event.type === "stream.state_changed") {
    const { stream, changes } = camera(event.stream_id);
    changes.value = [...changes.value, { time: event.time, ...event.data }].slice(-KEPT_CHANGES);
    if (event.data.state === "detached") dropStream(event.stream_id);
    else {
      if (stream.value) stream.value = { ...stream.value, state: event.data.state, error: event.data.error, since: event.time };
      refreshSoon();
    }
  } else if (event.type === "worker.state_changed") refreshSoon();
}

/** Read the streams again. */
export async function refreshStreams() {
  try {
    const found = await api.streams();
    batch(() => {
      for (const stream of found.streams) camera(stream.id).stream.value = stream;
      const ids = found.streams.map((stream) => stream.id);
      if (ids.join() !== streamIds.value.join()) streamIds.value = ids;
      missing.value = found.missing;
    });
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
  }
}

const KEPT_PAST = 200;

// The newest results, and the incidents of the last day.
async function readPast() {
  const [results, found] = await Promise.all([
    api.results({ limit: KEPT_PAST }).catch(() => ({ results: [] })),
    api.incidents({ limit: 200, since: "-1d" }).catch(() => ({ incidents: [] })),
  ]);
  return { results: results.results.reverse(), incidents: found.incidents };
}

function addPast(past) {
  for (const result of past.results) addResult(result);
  let known = incidents.value;
  for (const incident of past.incidents) known = withIncident(known, incident);
  incidents.value = known;
}

// The newest results of streams that said nothing lately.
async function readSilent() {
  const silent = streamIds.value.filter((id) => !camera(id).results.value.length).slice(0, 24);
  await Promise.all(silent.map((id) => api.results({ stream: id, limit: 1 }).then((page) => page.results.forEach(addResult), () => {})));
}

// All at once, so that nothing moves on screen as parts of it arrive.
async function loadAll() {
  const [found, past] = await Promise.all([api.streams(), readPast()]);
  batch(() => {
    for (const stream of found.streams) camera(stream.id).stream.value = stream;
    streamIds.value = found.streams.map((stream) => stream.id);
    missing.value = found.missing;
    addPast(past);
    phase.value = "ready";
  });
  await readSilent();
}

async function reload() {
  const [past] = await Promise.all([readPast(), refreshStreams()]);
  batch(() => addPast(past));
  generation.value++;
}

const PATIENCE = 2000;
let greeted = null;

// Wait until the socket sends events, so that none is missed while the past is read. If it does not
// open, go on without it, and read the past again when it opens.
function listening() {
  socket.stop();
  return new Promise((resolve) => {
    greeted = resolve;
    setTimeout(() => {
      if (greeted !== resolve) return;
      greeted = reload;
      resolve();
    }, PATIENCE);
    socket.start();
  });
}

const followers = new Map();
const pictureViewers = new Map();
const videoViewers = new Map();

const socketUrl = () => `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/ws`;

export const socket = new LiveSocket(typeof location === "undefined" ? "" : socketUrl(), {
  event: (event) => beforeFrame(() => handle(event)),
  resync: () => reload(),
  hello: (message) => {
    setServerTime(message.now);
    greeted?.();
    greeted = null;
  },
  picture: (picture) => {
    const { stream_id: id, time } = picture.header;
    beforeFrame(() => (camera(id).pictureAt.value = Date.parse(time)));
    const viewers = pictureViewers.get(id);
    const shown = viewers ? Promise.all([...viewers].map((show) => show(picture))) : Promise.resolve();
    shown.catch(() => {}).then(() => socket.acknowledge(picture.header));
  },
  video: (header, bytes) => videoViewers.get(header.stream_id)?.(header, bytes),
  query: (step, id, data) => beforeFrame(() => followers.get(id)?.(step, data)),
  state: (state) => {
    const before = link.value.state;
    if (state === before) return;
    // a try in between changes nothing on screen: the link is lost until it is open
    if (state === "connecting" && before === "lost") return;
    link.value = { state, since: Date.now() };
    if (state === "open" && before === "lost") reload();
  },
  refused: () => refreshSoon(),
  unauthorized: () => askForKey(),
  alive: () => fetch("/healthz", { signal: AbortSignal.timeout(5000) }).then((response) => response.ok, () => false),
});

/** Show the pictures of a stream with `show` until the returned function is called. */
export function watchPictures(id, fps, width, show) {
  const viewers = pictureViewers.get(id) ?? new Set();
  pictureViewers.set(id, viewers.add(show));
  const stop = socket.watch(id, fps, width);
  return () => {
    viewers.delete(show);
    if (!viewers.size) pictureViewers.delete(id);
    stop();
  };
}

/** Give the video of a stream to `take(header, bytes)` until the returned function is called. */
export function watchVideo(id, take) {
  videoViewers.set(id, take);
  const stop = socket.film(id);
  return () => {
    videoViewers.delete(id);
    stop();
  };
}

/** Follow the answer to a query: `run(step, data)`, until the returned function is called. */
export function followQuery(id, run) {
  followers.set(id, run);
  const stop = socket.follow(id);
  return () => {
    followers.delete(id);
    stop();
  };
}

/** Go to the page that asks for a key, and come back from there. */
export function askForKey() {
  if (route.value.page === "login") return;
  const next = address.value;
  navigate(next === "/" ? "/login" : `/login?next=${encodeURIComponent(next)}`, { replace: true });
}

const RETRY = 2000;
let started = false, retry;

/** Find out who uses the page, load what it shows, and listen to what happens. */
export async function start() {
  onUnauthorized(askForKey);
  clearTimeout(retry);
  try {
    [session.value] = await Promise.all([api.session(), listening()]);
    phase.value = "loading";
    await loadAll();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    socket.stop();
    if (error.status === 401) askForKey();
    clearTimeout(retry); // of a start that "Try again" began beside this one
    if (error.passes) retry = setTimeout(start, RETRY);
    phase.value = error;
    return;
  }
  if (!started) {
    started = true;
    setInterval(() => document.hidden || link.value.state !== "open" || refreshStreams(), REFRESH);
    addEventListener("online", () => socket.hurry());
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) return;
      socket.hurry();
      refreshStreams();
    });
  }
}
