/** Calls of the API: JSON in, JSON out, failures as ApiError. */

/** A failure: a stable code, and a sentence that says what to do. */
export class ApiError extends Error {
  constructor(status, { code, message, param } = {}) {
    super(message ?? "The service gave no reason: try again.");
    this.status = status;
    this.code = code ?? "UNKNOWN";
    this.param = param ?? null;
  }

  /** Whether the same call may work in a moment. */
  get passes() {
    return this.status === 0 || this.status === 429 || this.status >= 502;
  }
}

let unauthorized = () => {};

/** Set what to do when the service asks for a key. */
export function onUnauthorized(run) {
  unauthorized = run;
}

// milliseconds for an answer; the longest that the page waits for is a search for cameras
const PATIENCE = 60_000;

const limited = (signal) => AbortSignal.any([AbortSignal.timeout(PATIENCE), ...(signal ? [signal] : [])]);

const unreachable = () => new ApiError(0, { code: "UNREACHABLE", message: "The service cannot be reached. Check that it runs." });

/** Send a request; `body` is sent as JSON. A service that cannot be reached is an ApiError. */
export async function request(method, path, body, { signal, keepalive = false } = {}) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  try {
    return await fetch(path, { method, signal, keepalive, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    throw error.name === "AbortError" ? error : unreachable();
  }
}

/** The text of a response. A connection that is lost before its end is an ApiError too. */
async function textOf(response) {
  try {
    return await response.text();
  } catch (error) {
    throw error.name === "AbortError" ? error : unreachable();
  }
}

/** The ApiError of a response that is not a success. */
export async function errorOf(response) {
  return new ApiError(response.status, parsed(await textOf(response))?.error);
}

// null for what is no JSON, such as a proxy's page
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** Call the API, and return its answer; `quiet` leaves a 401 to the caller. */
export async function call(method, path, body, { signal, quiet = false, keepalive = false } = {}) {
  const response = await request(method, path, body, { signal: limited(signal), keepalive });
  if (response.ok) return parsed(await textOf(response));
  const error = await errorOf(response);
  if (response.status === 401 && !quiet) unauthorized(error);
  throw error;
}

/** A path with parameters; those that are null, undefined or empty are left out. */
export function withParams(path, params) {
  const kept = Object.entries(params).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const text = new URLSearchParams(kept).toString();
  return text ? `${path}?${text}` : path;
}

const get = (path, params = {}, options) => call("GET", withParams(path, params), undefined, options);
const ref = encodeURIComponent;

export const api = {
  session: () => get("/v1/session", {}, { quiet: true }),
  signIn: (key) => call("POST", "/v1/session", { key }, { quiet: true }),
  signOut: () => call("DELETE", "/v1/session"),

  /** All streams, however many pages they fill. */
  async streams() {
    const found = [];
    let cursor, page;
    do {
      page = await get("/v1/streams", { limit: 1000, cursor });
      found.push(...page.streams);
      cursor = page.next_cursor;
    } while (cursor);
    return { streams: found, missing: page.missing };
  },
  discover: (wanted, options) => call("POST", "/v1/discovery", wanted, options),
  attach: (stream) => call("POST", "/v1/streams", stream),
  editStream: (name, changes) => call("PATCH", `/v1/streams/${ref(name)}`, changes),
  detach: (name, options) => call("DELETE", `/v1/streams/${ref(name)}`, undefined, options),
  frames: (name, params, options) => get(`/v1/streams/${ref(name)}/frames`, params, options),
  clipPath: (name, since, until) => withParams(`/v1/streams/${ref(name)}/clip.mp4`, { since, until }),
  addWatch: (name, watch) => call("POST", `/v1/streams/${ref(name)}/watches`, watch),
  editWatch: (name, id, changes) => call("PATCH", `/v1/streams/${ref(name)}/watches/${ref(id)}`, changes),
  removeWatch: (name, id, options) => call("DELETE", `/v1/streams/${ref(name)}/watches/${ref(id)}`, undefined, options),

  results: (params, options) => get("/v1/results", params, options),
  framesOfResult: (requestId, options) => get(`/v1/results/${ref(requestId)}/frames`, {}, options),
  framesOfQuery: (id, options) => get(`/v1/queries/${ref(id)}/frames`, {}, options),

  ask: (question) => call("POST", "/v1/queries", question),
  cancel: (id) => call("DELETE", `/v1/queries/${ref(id)}`),

  incidents: (params, options) => get("/v1/incidents", params, options),
  incident: (id) => get(`/v1/incidents/${ref(id)}`),
  editIncident: (id, changes, options) => call("PATCH", `/v1/incidents/${ref(id)}`, changes, options),
  silence: (silence) => call("POST", "/v1/silences", silence),
  unsilence: (id) => call("DELETE", `/v1/silences/${ref(id)}`),

  /** The parts of the installation, also if one is missing (503). */
  async ready() {
    const response = await request("GET", "/readyz", undefined, { signal: limited() });
    const parts = parsed(await textOf(response));
    if (!parts?.parts) throw new ApiError(response.status, parts?.error);
    return parts;
  },
  async metrics() {
    const response = await request("GET", "/metrics", undefined, { signal: limited() });
    if (!response.ok) throw await errorOf(response);
    return textOf(response);
  },
};
