/** One camera: its pictures, what the model saw, its timeline, questions and watches. */
import { useComputed } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";
import { api } from "../api.js";
import { bitRate, bytes, cost, count, plural, saying, short } from "../format.js";
import { Icon } from "../icons.js";
import { useKeys } from "../keys.js";
import { ask, questions } from "../questions.js";
import { navigate, query, setQuery } from "../router.js";
import { camera, dropStream, idOf, mayOperate, phase, putStream, refreshStreams, setLeaving } from "../store.js";
import { ago, duration, moment, now, rangeText, rfc3339, secondsSince } from "../time.js";
import { Answer, AskBox } from "../ui/answers.js";
import { SeenFrames } from "../ui/frames.js";
import { html } from "../ui/html.js";
import { conditionWord, useAge, useCondition } from "../ui/picture.js";
import { Top } from "../ui/shell.js";
import { Empty, Failed, Sentence, Skeleton } from "../ui/states.js";
import { SPANS, Timeline, usePast } from "../ui/timeline.js";
import { complain, later, say } from "../ui/toast.js";
import { LiveVideo } from "../ui/video.js";
import { Watches } from "../ui/watches.js";

function Detail({ name, children }) {
  return html`<dt class="soft">${name}</dt><dd class="number">${children}</dd>`;
}

const CODECS = { h264: "H.264", hevc: "H.265" };
const CAUSES = { late: "too late", decode_error: "damaged", redis_away: "Redis away", redis_full: "Redis full", archive: "not archived" };

function Details({ stream }) {
  const { counters } = stream;
  const dropped = Object.entries(counters.dropped ?? {}).filter(([, number]) => number);
  return html`<section class="panel" aria-labelledby="details-title"><header><h2 id="details-title">Details</h2></header>
    <dl class="details">
      <${Detail} name="Source"><code>${stream.url}</code><//>
      ${counters.codec && html`<${Detail} name="Video">${CODECS[counters.codec] ?? counters.codec.toUpperCase()}${counters.width ? `, ${counters.width} × ${counters.height}` : ""}<//>`}
      ${counters.measured_fps && html`<${Detail} name="Rate">${counters.measured_fps.toFixed(1)} frames/s${counters.bit_rate ? `, ${bitRate(counters.bit_rate)}` : ""}<//>`}
      <${Detail} name="Sampled">${plural(counters.sampled, "frame")}, ${stream.sampling.mode === "fps" ? `${stream.sampling.fps} a second` : stream.sampling.mode === "change" ? "on change" : "key frames"}<//>
      <${Detail} name="Received">${bytes(counters.bytes)}<//>
      <${Detail} name="Dropped">${dropped.length ? dropped.map(([cause, number]) => `${short(number)} ${CAUSES[cause] ?? cause}`).join(", ") : "none"}<//>
      <${Detail} name="Reconnects">${count(counters.reconnects)}<//>
      ${counters.clips_dropped > 0 && html`<${Detail} name="Windows not asked">${count(counters.clips_dropped)}: the model is behind<//>`}
      <${Detail} name="State">${conditionWord(stream.state === "running" ? "live" : stream.state)} since ${moment(stream.since)}<//>
      ${stream.model && html`<${Detail} name="Model">${stream.model}<//>`}
    </dl></section>`;
}

function Line({ result, selected, choose }) {
  const text = saying(result);
  const kind = result.kind === "alert" ? html`<span class=${`tag ${result.data?.yes ? "warning" : ""}`}>${text}</span> ${result.prompt}` : result.kind === "answer" ? html`<span class="soft">${result.prompt}</span> ${text}` : text;
  return html`<li><button class="line" aria-pressed=${selected} onClick=${choose} title=${cost(result)}>
    <time class="soft number" datetime=${result.end ?? result.created_at}>${moment(result.end ?? result.created_at)}</time>
    <span class=${result.kind === "error" ? "bad" : ""}>${kind}</span>
    <span class="soft number small spent">${result.vision_tokens ? `${count(result.vision_tokens)} tokens` : ""}</span></button></li>`;
}

function Player({ id, stream, view, selected, clip, closeClip }) {
  const [clipError, setClipError] = useState(false);
  useEffect(() => setClipError(false), [clip]);
  if (clip) {
    return html`<div class="picture">
      ${clipError
        ? html`<div class="note"><${Icon} name="film" /><span>No frames of this range are kept</span></div>`
        : html`<video src=${clip} controls autoplay muted playsinline onError=${() => setClipError(true)} />`}
      <button class="button over" onClick=${closeClip}>Back to now</button></div>`;
  }
  if (view === "seen") {
    if (!selected) return html`<div class="picture"><div class="note"><${Icon} name="eye" /><span>The model has not looked yet</span></div></div>`;
    return html`<${SeenFrames} result=${selected} load=${(options) => api.framesOfResult(selected.request_id, options)} />`;
  }
  return html`<${LiveVideo} id=${id} codec=${stream.live ? stream.counters.codec : null} />`;
}

function Questions({ stream, range, clearRange, showRange }) {
  const mine = useComputed(() => questions.value.filter((question) => question.value.stream === stream.name && !question.value.group));
  const onAsk = (prompt) => ask({ prompt, stream: stream.name, since: range && rfc3339(range.since), until: range && rfc3339(range.until) });
  return html`<section class="panel asking" aria-labelledby="ask-title">
    <header><h2 id="ask-title" class="grow">Ask</h2>
      ${range ? html`<span class="tag accent number">${rangeText(range.since, range.until)}<button class="inline" aria-label="Ask about now instead" onClick=${clearRange}><${Icon} name="close" size=${13} /></button></span>` : html`<span class="tag">Now</span>`}</header>
    <div class="body"><${AskBox} placeholder=${range ? "Ask about this range" : "Ask what this camera shows"} onAsk=${onAsk} />
      ${mine.value.length === 0 && html`<p class="soft small">${range ? "The answer rests on frames of the range." : "Drag on the timeline to ask about the past."}</p>`}</div>
    ${mine.value.slice(0, 10).map((question) => html`<${Answer} key=${question.value.key} question=${question} onRange=${showRange} />`)}
  </section>`;
}

function Loaded({ id, stream }) {
  const params = query.value;
  const { state } = useCondition(id);
  const age = useAge(id);
  const [span, setSpan] = useState(900);
  const [until, setUntil] = useState(null);
  const [clip, setClip] = useState(null);
  const [picked, setPicked] = useState(null);
  const end = until ?? Math.ceil(now.value / 1000) * 1000;
  const start = end - span * 1000;
  const past = usePast(id, start, end, until === null);
  const range = params.get("since") && params.get("until") ? { since: Date.parse(params.get("since")), until: Date.parse(params.get("until")) } : null;
  const setRange = (chosen) => setQuery({ since: chosen && rfc3339(chosen.since), until: chosen && rfc3339(chosen.until) });
  const view = params.get("view") === "seen" || params.get("result") ? "seen" : "live";
  const results = past.results.filter((result) => result.plan || result.frames);
  const wanted = params.get("result");
  const selected = wanted ? (past.results.find((result) => result.request_id === wanted) ?? (picked?.request_id === wanted ? picked : null)) : (results.find((result) => result.kind === "caption") ?? results[0] ?? null);
  const choose = (result) => {
    setPicked(result);
    setClip(null);
    setQuery({ result: result.request_id, view: "seen" });
  };
  const showLive = () => {
    setClip(null);
    setQuery({ view: null, result: null });
  };
  const showSeen = () => {
    setClip(null);
    setQuery({ view: "seen" });
  };
  const pause = async () => {
    try {
      putStream(await api.editStream(stream.id, { paused: !stream.paused }));
      say(stream.paused ? `${stream.name} continues` : `${stream.name} is paused`);
    } catch (error) {
      complain(error);
    }
  };
  const detach = () => {
    later(`${stream.name} is detached`, {
      hide: () => {
        setLeaving(id, true);
        navigate("/");
      },
      run: async (options) => {
        await api.detach(id, options);
        dropStream(id);
        setLeaving(id, false);
        refreshStreams();
      },
      restore: () => setLeaving(id, false),
    });
  };
  const step = (by) => {
    const at = selected ? past.results.findIndex((result) => result.id === selected.id) : -1;
    const next = past.results[Math.max(0, Math.min(past.results.length - 1, at + by))];
    if (next) choose(next);
  };
  useKeys("Camera", [
    ["a", "Ask", () => document.getElementById("ask")?.focus()],
    ["l", "Live pictures", showLive],
    ["t", "What the model saw, with tiles", showSeen],
    ["j", "Older caption", () => step(1)],
    ["k", "Newer caption", () => step(-1)],
    ["p", "Pause or resume", () => mayOperate.value && pause()],
    ["Escape", "Back to now; then to the cameras", () => (clip || range || view === "seen" ? (setRange(null), showLive()) : navigate("/"))],
  ]);
  const incident = camera(id).incident.value;
  const listed = range ? past.results.filter((result) => { const at = Date.parse(result.end ?? result.created_at); return at >= range.since && at <= range.until + 1000; }) : past.results;
  return html`
    <${Top} title=${stream.name} back="/">
      <span class="row"><span class=${`dot ${state}`} /><span class="soft clip">${conditionWord(state)}${state !== "live" && age !== null ? ` · ${ago(age)}` : ""}</span></span>
      <span class="grow" />
      ${mayOperate.value && html`
        <button class="button plain wide" onClick=${pause}><${Icon} name=${stream.paused ? "play" : "pause"} size=${16} />${stream.paused ? "Resume" : "Pause"}</button>
        <button class="button plain square narrow" aria-label=${stream.paused ? "Resume" : "Pause"} onClick=${pause}><${Icon} name=${stream.paused ? "play" : "pause"} /></button>
        <button class="button plain square" aria-label="Detach this camera" title="Detach" onClick=${detach}><${Icon} name="trash" /></button>`}
    <//>
    ${incident && html`<a class=${`banner ${incident.severity === "critical" ? "bad" : ""}`} href=${`/incidents/${incident.id}`}><${Icon} name="bell" size=${16} /><strong class="clip">${incident.title}</strong><span class="nowrap">for ${duration(secondsSince(incident.opened_at, now.value))}</span><span class="grow"></span><span>Open</span></a>`}
    ${stream.error && (state === "lost" || state === "failed") && html`<div class="banner bad" role="status"><${Icon} name="warning" size=${16} /><span><${Sentence} text=${stream.error.message} /></span></div>`}
    <div class="stream">
      <div class="stack main-column">
        <section class="panel player" aria-label="Pictures">
          <${Player} ...${{ id, stream, view, selected, clip }} closeClip=${() => setClip(null)} />
          <div class="tools">
            <div class="segments" role="group" aria-label="What is shown">
              <button aria-pressed=${view === "live" && !clip} onClick=${showLive}>Now</button>
              <button aria-pressed=${view === "seen" && !clip} onClick=${showSeen}>What the model saw</button>
            </div>
            ${view === "seen" && !clip && selected && html`<p class="soft clip grow" title=${saying(selected)}>${saying(selected)}</p>`}
          </div>
        </section>
        <section class="panel" aria-labelledby="timeline-title">
          <header class="row spans"><h2 id="timeline-title" class="grow">Timeline</h2>
            <span class="row tight">
              <button class="button plain square" aria-label="Earlier" onClick=${() => setUntil(end - span * 500)}><${Icon} name="back" size=${16} /></button>
              <button class="button plain square" aria-label="Later" disabled=${until === null} onClick=${() => setUntil(end + span * 500 >= now.value ? null : end + span * 500)}><${Icon} name="next" size=${16} /></button></span>
            <div class="segments" role="group" aria-label="Length of the timeline">${SPANS.map(([seconds, label]) => html`<button key=${seconds} aria-pressed=${span === seconds} onClick=${() => setSpan(seconds)}>${label}</button>`)}</div></header>
          <${Timeline} ...${{ start, end, past, range, selected: view === "seen" ? selected : null }} onRange=${setRange} onSelect=${choose} />
          ${range && html`<div class="row wrap range"><span class="number grow">${rangeText(range.since, range.until)} · ${duration((range.until - range.since) / 1000)}</span>
            <button class="button" onClick=${() => setClip(api.clipPath(id, rfc3339(range.since), rfc3339(range.until)))}><${Icon} name="play" size=${15} />Watch it</button>
            <button class="button" onClick=${() => document.getElementById("ask").focus()}><${Icon} name="ask" size=${15} />Ask about it</button>
            <button class="button plain" onClick=${() => setRange(null)}>Clear</button></div>`}
        </section>
        <section class="panel" aria-labelledby="captions-title">
          <header><h2 id="captions-title" class="grow">${range ? "In this range" : "Captions and answers"}</h2><span class="soft small number">${listed.length ? count(listed.length) : ""}</span></header>
          ${past.loading && !listed.length ? html`<div class="body"><${Skeleton} lines=${4} /></div>`
            : !listed.length && past.error ? html`<${Failed} small error=${past.error} retry=${past.retry} />`
            : !listed.length ? html`<${Empty} small icon="eye" title=${range ? "Nothing was said in this range" : "No caption yet"} text=${range ? "Ask about it: the frames may still be kept." : stream.watches.length ? "The first one comes after a window of the watch." : "Add a watch, and the model describes what happens."} />`
            : html`<ul class="lines">${listed.slice(0, 120).map((result) => html`<${Line} key=${result.id} result=${result} selected=${view === "seen" && selected?.id === result.id} choose=${() => choose(result)} />`)}</ul>`}
        </section>
      </div>
      <div class="stack side-column">
        <${Questions} stream=${stream} range=${range} clearRange=${() => setRange(null)} showRange=${(result) => setRange({ since: Date.parse(result.frames_from), until: Math.max(Date.parse(result.frames_to), Date.parse(result.frames_from) + 1000) })} />
        <${Watches} stream=${stream} />
        <${Details} stream=${stream} />
      </div>
    </div>`;
}

export default function StreamPage({ name }) {
  const id = idOf(name);
  const stream = id && camera(id).stream.value;
  if (stream) return html`<${Loaded} key=${id} id=${id} stream=${stream} />`;
  if (phase.value === "loading") {
    return html`<${Top} title=${name} back="/" /><div class="stream" aria-busy="true"><div class="stack main-column"><div class="panel player"><div class="picture" /></div><div class="panel body"><${Skeleton} lines=${3} /></div></div>
      <div class="stack side-column"><div class="panel body"><${Skeleton} lines=${4} /></div></div></div>`;
  }
  return html`<${Top} title=${name} back="/" /><${Empty} icon="camera" title="No such camera is attached" text=${`“${name}” may have been detached or renamed. Its past results can still be searched.`}>
    <a class="button" href=${`/search?stream=${encodeURIComponent(name)}`}>Search its results</a><a class="button" href="/">All cameras</a><//>`;
}
