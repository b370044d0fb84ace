/** Search what the model has said. */
import { useEffect, useRef, useState } from "preact/hooks";
import { api } from "../api.js";
import { cost, marked, percent, plural, saying } from "../format.js";
import { Icon } from "../icons.js";
import { useKeys } from "../keys.js";
import { query, setQuery, streamPath } from "../router.js";
import { camera, phase, shownIds } from "../store.js";
import { moment, rfc3339 } from "../time.js";
import { html } from "../ui/html.js";
import { Top } from "../ui/shell.js";
import { Empty, Failed, Skeleton, Spinner } from "../ui/states.js";

const KINDS = [["", "Everything"], ["caption", "Captions"], ["answer", "Answers"], ["alert", "Alerts"], ["error", "Failures"]];
const SINCE = [["", "Any time"], ["-1h", "Last hour"], ["-1d", "Last day"], ["-7d", "Last week"], ["-30d", "Last month"]];

/** The parameters of a call from those of the address. */
export function searchOf(params) {
  const get = (name) => params.get(name) || null;
  const given = { q: get("q"), stream: get("stream"), kind: get("kind"), since: get("since") };
  if (given.q && params.get("mode") === "meaning") given.mode = "meaning";
  if (given.q && params.get("verify")) given.verify = "true";
  return given;
}

// The picture of a result, asked for when it comes on screen.
function Shot({ result }) {
  const box = useRef(null);
  const [url, setUrl] = useState(undefined);
  useEffect(() => {
    const stop = new AbortController();
    const seen = new IntersectionObserver(([entry]) => {
      if (!entry.isIntersecting) return;
      seen.disconnect();
      api.framesOfResult(result.request_id, { signal: stop.signal }).then(
        (list) => setUrl(list.frames.filter((frame) => frame.url).at(-1)?.url ?? null), () => setUrl(null));
    }, { rootMargin: "200px" });
    seen.observe(box.current);
    return () => { seen.disconnect(); stop.abort(); };
  }, [result.id]);
  return html`<span class="shot" ref=${box}>${url ? html`<img src=${url} alt="" width="128" height="72" />` : url === null ? html`<${Icon} name="camera" size=${18} />` : null}</span>`;
}

const VERDICTS = { yes: "Shows it", no: "Does not show it", unverified: "Not checked" };

// What the model says about a hit.
function Verdict({ match }) {
  if (!match?.verdict) return null;
  if (match.verdict === "pending") return html`<span class="tag"><${Spinner} />Checking</span>`;
  const sure = typeof match.probability === "number" ? ` · ${percent(match.verdict === "no" ? 1 - match.probability : match.probability)}` : "";
  return html`<span class=${`tag ${match.verdict === "yes" ? "accent" : ""}`} title=${match.reason ?? ""}>${VERDICTS[match.verdict]}${sure}</span>`;
}

function Hit({ result, match, words }) {
  const at = result.start ?? result.created_at;
  const name = result.stream_name ?? "";
  const to = streamPath(name, { view: "seen", result: result.request_id, since: rfc3339(at), until: rfc3339(Math.max(Date.parse(result.end ?? at), Date.parse(at) + 1000)) });
  return html`<li><a class=${match?.verdict === "no" ? "hit doubted" : "hit"} href=${to}>
    <${Shot} result=${result} />
    <span class="grow stack" style=${{ gap: "3px" }}>
      <span class="row small soft"><span class="clip">${name}</span><span class="number">${moment(at)}</span>
        ${result.kind !== "caption" && html`<span class="tag">${result.kind}</span>`}
        <${Verdict} match=${match} /></span>
      ${(result.kind === "answer" || result.kind === "alert") && html`<span class="soft">${result.prompt}</span>`}
      <span class=${result.kind === "error" ? "bad" : ""}>${marked(saying(result), words).map(([piece, hit]) => (hit ? html`<mark>${piece}</mark>` : piece))}</span>
      <span class="small soft number">${cost(result)}</span>
    </span></a></li>`;
}

export default function Search() {
  const params = query.value;
  const [typed, setTyped] = useState(params.get("q") ?? "");
  const [found, setFound] = useState({ results: null, matches: null, next: null, error: null });
  const [attempt, setAttempt] = useState(0);
  const timer = useRef(null);
  const given = searchOf(params);
  const key = JSON.stringify(given);
  useEffect(() => setTyped(params.get("q") ?? ""), [params.get("q")]);
  useEffect(() => {
    if (phase.value !== "ready") return;
    const stop = new AbortController();
    const read = async () => {
      let page;
      do {
        page = await api.results({ ...given, limit: 40, wait: page ? 20 : null }, { signal: stop.signal });
        setFound({ results: page.results, matches: page.matches ?? null, next: page.next_cursor, error: null });
      } while (page.matches?.some((match) => match.verdict === "pending"));
    };
    read().catch(
      (error) => error.name === "AbortError" || setFound({ results: null, matches: null, next: null, error }));
    return () => stop.abort();
  }, [key, attempt, phase.value]);
  useEffect(() => () => clearTimeout(timer.current), []);
  const more = async () => {
    const add = (changes) => setFound((now) => (now === found ? { ...found, ...changes } : now)); // unless the search has changed
    try {
      const page = await api.results({ ...given, verify: null, limit: 40, cursor: found.next });
      add({ results: [...found.results, ...page.results], next: page.next_cursor });
    } catch (error) {
      add({ error });
    }
  };
  const onInput = (event) => {
    setTyped(event.target.value);
    clearTimeout(timer.current);
    const text = event.target.value;
    timer.current = setTimeout(() => setQuery({ q: text.trim() }), 250);
  };
  useKeys("Search", [["i", "Type", () => document.getElementById("search").focus()]]);
  const names = shownIds.value.map((id) => camera(id).stream.value?.name).filter(Boolean);
  const stream = params.get("stream") ?? "";
  const filtered = given.q || given.stream || given.kind || given.since;
  const select = (name, label, options) => html`<label><span class="aloud">${label}</span><select class="field" value=${params.get(name) ?? ""} onChange=${(event) => setQuery({ [name]: event.target.value })}>
    ${options.map(([value, text]) => html`<option key=${value} value=${value}>${text}</option>`)}</select></label>`;
  return html`
    <${Top} title="Search" />
    <form class="searchbar" role="search" onSubmit=${(event) => { event.preventDefault(); clearTimeout(timer.current); setQuery({ q: document.getElementById("search").value.trim() }); }}>
      <span class="searchfield"><${Icon} name="search" size=${17} /><input id="search" class="field" type="search" maxlength="1000" autofocus placeholder=${"red car, \"red car\" or park*"} aria-label="Words of captions, questions and answers" value=${typed} onInput=${onInput} /></span>
      <div class="row wrap filters">
        ${select("stream", "Camera", [["", "All cameras"], ...(stream && !names.includes(stream) ? [[stream, stream]] : []), ...names.map((name) => [name, name])])}
        ${select("kind", "Kind", KINDS)}
        ${select("since", "Time", SINCE)}
        <div class="segments" role="group" aria-label="Search by"><button type="button" aria-pressed=${params.get("mode") !== "meaning"} onClick=${() => setQuery({ mode: null })}>Words</button><button type="button" aria-pressed=${params.get("mode") === "meaning"} onClick=${() => setQuery({ mode: "meaning" })}>Meaning</button></div>
        <button type="button" class="button" aria-pressed=${given.verify === "true"} disabled=${!given.q} title="Ask the model whether the frames of each result show it" onClick=${() => setQuery({ verify: given.verify ? null : "1" })}><${Icon} name="eye" size=${16} />Check the frames</button>
      </div>
    </form>
    <div aria-live="polite" class="aloud">${found.results ? plural(found.results.length, "result") : ""}</div>
    ${found.error ? html`<${Failed} error=${found.error} retry=${() => setAttempt(attempt + 1)} title="The search failed" />`
      : !found.results ? html`<div class="hits">${[1, 2, 3, 4].map((line) => html`<div class="hit" key=${line}><span class="shot skeleton" /><span class="grow"><${Skeleton} lines=${2} /></span></div>`)}</div>`
      : !found.results.length ? html`<${Empty} icon="search" title=${filtered ? "Nothing was found" : "Nothing has been said yet"} text=${filtered ? "Try other words, or a longer time." : "Captions and answers appear here as they come."}>${filtered && html`<button class="button" onClick=${() => setQuery({ q: null, stream: null, kind: null, since: null, mode: null, verify: null })}>Clear the search</button>`}${!filtered && !names.length && html`<a class="button primary" href="/attach">Attach a camera</a>`}<//>`
      : html`<ul class="hits">${found.results.map((result, index) => html`<${Hit} key=${result.id} result=${result} match=${found.matches?.[index]} words=${given.q} />`)}</ul>
        ${found.next && html`<div class="row more"><button class="button" onClick=${more}>Older ones</button></div>`}`}`;
}
