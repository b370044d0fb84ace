/** Attach a camera: its address, each step towards its first picture, its first caption. */
import { useSignal } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";
import { api } from "../api.js";
import { bitRate, milliseconds, saying } from "../format.js";
import { Icon } from "../icons.js";
import { query, setQuery, streamPath } from "../router.js";
import { postForEvents } from "../sse.js";
import { camera, mayOperate, phase, putStream } from "../store.js";
import { Discover } from "../ui/discover.js";
import { html } from "../ui/html.js";
import { LivePicture } from "../ui/picture.js";
import { Top } from "../ui/shell.js";
import { Empty, Problem, Sentence, Spinner } from "../ui/states.js";

const WORDS = {
  name: "Find the address",
  connect: "Connect",
  encrypt: "Encrypt",
  redirect: "Follow the redirect",
  describe: "Log in and ask for the video",
  description: "Look for video",
  "set up": "Agree on the transport",
  open: "Open the video",
  "first picture": "Receive a picture",
};

/** A name for a stream from its address: the last part of the path, or the host. */
export function suggestedName(url) {
  const rest = url.trim().replace(/^[a-z]+:\/\//i, "").replace(/^[^/@]*@/, "").split(/[?#]/)[0];
  const parts = rest.split("/").filter(Boolean);
  const last = parts.length > 1 ? parts.at(-1).replace(/\.\w{2,4}$/, "") : "";
  const plain = /^(stream\d*|live|video\w*|\d+|main|sub|h26\w*|ch\w*|media)$/i.test(last) ? "" : last;
  return (plain || (parts[0] ?? "").replace(/:\d+$/, "")).replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "").slice(0, 64);
}

/** Steps after an event of the probe: `[{name, state, detail, ms}]`, state is begun, ok or failed. */
export function withStep(steps, name, data) {
  if (name === "begun") return [...steps, { name: data.name, state: "begun", detail: "" }];
  const ended = { name: data.name, state: data.ok ? "ok" : "failed", detail: data.detail, ms: data.ms };
  const at = steps.findIndex((step) => step.name === data.name && step.state === "begun");
  return at < 0 ? [...steps, ended] : steps.with(at, ended);
}

/** What is known of a source, in one line. */
export function facts(report) {
  return [
    report.codec && { h264: "H.264", hevc: "H.265" }[report.codec] || report.codec?.toUpperCase(),
    report.width && `${report.width} × ${report.height}`,
    report.fps && `${report.fps.toFixed(0)} frames/s`,
    report.bit_rate && bitRate(report.bit_rate),
    report.live ? "live" : "recording",
  ].filter(Boolean).join(" · ");
}

function Step({ state, name, detail, ms }) {
  const icon = state === "begun" ? html`<${Spinner} />` : html`<${Icon} name=${state === "ok" ? "check" : "close"} size=${16} />`;
  return html`<li class=${`step ${state}`}><span class="mark">${icon}</span>
    <span class="grow"><strong>${name}</strong>${detail && html`<span class=${state === "failed" ? "bad" : "soft"}><${Sentence} text=${detail} /></span>`}</span>
    <span class="soft number small">${ms !== undefined ? milliseconds(ms) : ""}</span>
    <span class="aloud">${state === "ok" ? "done" : state === "failed" ? "failed" : "in progress"}</span></li>`;
}

function First({ stream }) {
  const { results, pictureAt, stream: known } = camera(stream.id);
  const now = known.value ?? stream;
  const picture = pictureAt.value !== null || now.last_frame_at;
  const caption = results.value.find((result) => result.kind === "caption" || result.kind === "error");
  const failed = now.state === "failed" || (now.state === "reconnecting" && now.error);
  return html`
    <${Step} state=${picture ? "ok" : failed ? "failed" : "begun"} name="First picture" detail=${failed ? now.error?.message : ""} />
    ${picture && html`<${Step} state=${caption ? (caption.kind === "error" ? "failed" : "ok") : "begun"} name="First caption" detail=${caption ? saying(caption) : stream.watches.length ? `The model looks at ${stream.watches[0].window} seconds at a time.` : "No watch asks about it."} />`}`;
}

export default function Attach() {
  const [url, setUrl] = useState("");
  const [name, setName] = useState("");
  const [named, setNamed] = useState(false);
  const [endpoint, setEndpoint] = useState(null);
  const [question, setQuestion] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(null);
  const [attached, setAttached] = useState(null);
  const steps = useSignal([]);
  const report = useSignal(null);
  const stop = useRef(null);
  useEffect(() => () => stop.current?.abort(), []);
  if (phase.value === "ready" && !mayOperate.value) {
    return html`<${Top} title="Attach a camera" back="/" /><${Empty} icon="camera" title="This key may only read" text="Sign in with a key that has the scope operate."><a class="button" href="/login?next=/attach">Sign in</a><//>`;
  }
  const attach = async () => {
    const body = { url: url.trim(), name: (name || suggestedName(url)) || undefined, probe: false, live: report.value ? report.value.live : undefined, endpoint_reference: endpoint ?? undefined };
    if (question.trim()) body.watches = [{ prompt: question.trim() }];
    try {
      const stream = await api.attach(body);
      putStream(stream);
      setAttached(stream);
    } catch (problem) {
      setError(problem);
    }
  };
  const tryOut = async (event) => {
    event.preventDefault();
    setError(null);
    setAttached(null);
    setBusy(true);
    steps.value = [];
    report.value = null;
    stop.current?.abort();
    stop.current = new AbortController();
    try {
      await postForEvents("/v1/probe", { url: url.trim() }, (kind, data) => {
        if (kind === "report") report.value = data;
        else steps.value = withStep(steps.value, kind, data);
      }, { signal: stop.current.signal });
      if (report.value?.ok) await attach();
    } catch (problem) {
      if (problem.name !== "AbortError") setError(problem);
    }
    setBusy(false);
  };
  const choose = (camera) => {
    setUrl(camera.url);
    setName(camera.name);
    setNamed(true);
    setEndpoint(camera.endpoint);
    setAttached(null);
    setError(null);
    steps.value = [];
    report.value = null;
    setQuery({ find: null });
  };
  const finding = query.value.get("find") !== null;
  const failed = report.value && !report.value.ok;
  const begun = steps.value.length > 0 || attached;
  return html`
    <${Top} title="Attach a camera" back="/"><span class="grow" />
      <div class="segments" role="group" aria-label="How to find it"><button aria-pressed=${!finding} onClick=${() => setQuery({ find: null })}>Address</button><button aria-pressed=${finding} onClick=${() => setQuery({ find: "network" })}>Search<span class="wide"> the network</span></button></div><//>
    ${finding && html`<div class="attach"><${Discover} choose=${choose} /></div>`}
    <div class="attach" hidden=${finding}>
      <form class="panel body" onSubmit=${tryOut}>
        <label class="label">Address
          <input class="field" type="text" inputmode="url" required autofocus spellcheck="false" autocomplete="off" autocapitalize="off" maxlength="4096" placeholder="rtsp://user:password@192.168.1.20/stream1"
            value=${url} onInput=${(event) => { setUrl(event.target.value); setEndpoint(null); if (!named) setName(suggestedName(event.target.value)); }} disabled=${busy} /></label>
        <div class="row wrap two">
          <label class="label grow">Name
            <input class="field" type="text" spellcheck="false" pattern="[A-Za-z0-9][A-Za-z0-9._\\-]*" maxlength="64" title="Letters, digits, dots, dashes" placeholder="gate" value=${name} onInput=${(event) => { setName(event.target.value); setNamed(true); }} disabled=${busy} /></label>
          <label class="label grow">Question about every window <input class="field" type="text" placeholder="Describe the scene" value=${question} onInput=${(event) => setQuestion(event.target.value)} disabled=${busy} /></label>
        </div>
        <${Problem} error=${error} />
        <div class="row"><button class="button primary" disabled=${busy || !url.trim()}>${busy ? "Trying …" : attached ? "Attach another" : "Attach"}</button>
          ${busy && html`<button type="button" class="button plain" onClick=${() => stop.current?.abort()}>Stop</button>`}
          ${failed && !busy && html`<button type="button" class="button" onClick=${attach}>Attach it anyway</button>`}</div>
        ${!begun && html`<p class="soft small">rtsp://, rtmp://, http(s):// or the path of a file on the server. The password is stored once, and never shown again.</p>`}
      </form>
      ${begun && html`<section class="panel" aria-labelledby="steps-title">
        <header><h2 id="steps-title" class="grow">${attached ? attached.name : "Trying the camera"}</h2>${report.value?.ok && html`<span class="soft small clip">${facts(report.value)}</span>`}</header>
        <ol class="steps" aria-live="polite">
          ${steps.value.map((step, index) => html`<${Step} key=${index} ...${step} name=${WORDS[step.name] ?? step.name} />`)}
          ${attached && html`<${First} stream=${attached} />`}
        </ol>
        ${report.value?.advice.length > 0 && html`<div class="advice"><h3>${failed ? "What to try" : "What would make it better"}</h3><ul>${report.value.advice.map((line) => html`<li key=${line}><${Sentence} text=${line} /></li>`)}</ul></div>`}
        ${attached && html`<div class="arrived"><${LivePicture} id=${attached.id} fps=${2} width=${640} /><a class="button primary" href=${streamPath(attached.name)}>Open ${attached.name}</a></div>`}
      </section>`}
    </div>`;
}
