/** The inbox of incidents. */
import { useSignal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";
import { api } from "../api.js";
import { count, percent, plural } from "../format.js";
import { Icon } from "../icons.js";
import { useKeys } from "../keys.js";
import { navigate, query, setQuery, streamPath } from "../router.js";
import { camera, generation, idOf, incidents, mayOperate, phase, putIncident } from "../store.js";
import { ago, duration, moment, now, rfc3339, secondsSince } from "../time.js";
import { html } from "../ui/html.js";
import { Thumbnail } from "../ui/picture.js";
import { Top } from "../ui/shell.js";
import { Empty, Failed, Skeleton } from "../ui/states.js";
import { complain, later, say } from "../ui/toast.js";

const FILTERS = [["open", "Open"], ["unseen", "Unseen"], ["all", "All"]];
const SNOOZES = [[15, "15 minutes"], [60, "1 hour"], [480, "8 hours"], [1440, "1 day"]];
const RESOLVED = { cleared: "It cleared", stream_lost: "The camera was lost", watch_removed: "Its watch was removed", manual: "Resolved by hand" };

/** Whether an incident belongs to a filter. */
export function belongs(incident, filter) {
  if (incident.state === "pending") return false;
  if (filter === "open") return incident.state === "open";
  if (filter === "unseen") return !incident.seen_by.length && !incident.acknowledged;
  return true;
}

/** Open ones first, then by time, the newest first. */
export function inOrder(list) {
  return [...list].sort((a, b) => (b.state === "open") - (a.state === "open") || (a.opened_at < b.opened_at ? 1 : -1));
}

/** How long an incident has lasted, in seconds. */
export function lasted(incident, at) {
  return Math.max(0, ((incident.resolved_at ? Date.parse(incident.resolved_at) : at) - Date.parse(incident.opened_at)) / 1000);
}

async function change(incident, changes, optimistic) {
  putIncident({ ...incident, ...optimistic });
  try {
    putIncident(await api.editIncident(incident.id, changes));
  } catch (error) {
    incidents.value = new Map(incidents.value).set(incident.id, incident);
    complain(error);
  }
}

const actions = {
  see: (incident) => incident.seen_by.length || change(incident, { seen: true }, { seen_by: ["you"] }),
  acknowledge: (incident) => change(incident, { acknowledged: true }, { acknowledged: { by: "you", at: rfc3339(now.value), note: null } }),
  judge: (incident, verdict) => change(incident, { feedback: { verdict } }, { feedback: { verdict, by: null, at: rfc3339(now.value), note: null } }),
  resolve: (incident) =>
    later(`“${incident.title}” is resolved`, {
      hide: () => putIncident({ ...incident, state: "resolved", resolved_at: rfc3339(now.value), resolve_reason: "manual" }),
      run: async (options) => putIncident(await api.editIncident(incident.id, { state: "resolved" }, options)),
      restore: () => (incidents.value = new Map(incidents.value).set(incident.id, incident)),
    }),
  async snooze(incident, minutes) {
    try {
      const silence = await api.silence({
        matchers: [{ name: "watch", value: incident.watch_id }, { name: "stream", value: incident.stream_name }],
        minutes,
        reason: `Snoozed: ${incident.title}`,
      });
      const words = SNOOZES.find(([each]) => each === minutes)?.[1] ?? `${minutes} minutes`;
      say(`No messages about this for ${words}`, () => api.unsilence(silence.id).catch(complain));
      putIncident({ ...incident, silenced_by: [...incident.silenced_by, silence.id] });
    } catch (error) {
      complain(error);
    }
  },
};

function Thumb({ incident }) {
  const path = incident.snapshot.best ?? incident.snapshot.opened;
  return html`<${Thumbnail} path=${path} width=${64} height=${36} />`;
}

function Line({ incident, current }) {
  const fresh = !incident.seen_by.length && !incident.acknowledged;
  return html`<li><a class=${`inbox-line ${fresh ? "fresh" : ""}`} href=${`/incidents/${incident.id}${location.search}`} aria-current=${current ? "true" : null} data-incident=${incident.id}>
    <span class=${`severity ${incident.severity} ${incident.state}`} title=${incident.severity} />
    <${Thumb} incident=${incident} />
    <span class="grow"><span class="row"><span class="title clip grow">${incident.title}</span>
        ${fresh && html`<span class="dot unseen"><span class="aloud">New</span></span>`}</span>
      <span class="row small soft"><span class="clip grow">${incident.stream_name} · ${incident.state === "open" ? "for " : ""}${duration(lasted(incident, now.value))}</span>
        <span class="number">${incident.state === "open" ? "Open" : ago(secondsSince(incident.resolved_at ?? incident.last_seen_at, now.value))}</span></span></span>
  </a></li>`;
}

function Snooze({ incident, open, setOpen }) {
  return html`<div class="menu" onKeyDown=${(event) => { if (event.key === "Escape") { event.stopPropagation(); setOpen(false); } }}>
    <button class="button" aria-haspopup="true" aria-expanded=${open} onClick=${() => setOpen(!open)}><${Icon} name="snooze" size=${16} />Snooze<kbd class="wide">S</kbd></button>
    ${open && html`<div class="list" role="group" aria-label="Snooze for">${SNOOZES.map(([minutes, label], index) => html`<button key=${minutes} ref=${index === 0 ? (button) => button?.focus() : null} onClick=${() => { setOpen(false); actions.snooze(incident, minutes); }}>${label}</button>`)}</div>`}
  </div>`;
}

function Pictures({ incident }) {
  const [which, setWhich] = useState("best");
  const [film, setFilm] = useState(false);
  const [gone, setGone] = useState(false);
  const [lost, setLost] = useState(null);
  useEffect(() => { setFilm(false); setGone(false); }, [incident.id]);
  const given = ["opened", "best", "last"].filter((each) => incident.snapshot[each]);
  const shown = given.includes(which) ? which : given[0];
  const names = { opened: "First", best: "Clearest", last: "Latest" };
  const path = `/v1/incidents/${incident.id}/snapshot.jpg?which=${shown}&version=${shown === "opened" ? 1 : incident.version}`;
  return html`<div class="panel player">
    <div class="picture">
      ${film
        ? gone ? html`<div class="note"><${Icon} name="film" /><span>The frames of this incident are not kept any more</span></div>`
               : html`<video src=${incident.clip} controls autoplay muted playsinline onError=${() => setGone(true)} />`
        : shown && path !== lost ? html`<img src=${path} onError=${() => setLost(path)} alt=${`${incident.title}: ${names[shown].toLowerCase()} picture`} />`
                : html`<div class="note"><${Icon} name="camera" /><span>${shown ? "This picture is not kept any more" : "No picture was kept"}</span></div>`}
    </div>
    <div class="tools"><div class="segments" role="group" aria-label="Picture">
      ${given.map((each) => html`<button key=${each} aria-pressed=${!film && each === shown} onClick=${() => { setFilm(false); setWhich(each); }}>${names[each]}</button>`)}
      <button aria-pressed=${film} onClick=${() => setFilm(true)}>Clip</button></div></div>
  </div>`;
}

function Fact({ name, children }) {
  return html`<dt class="soft">${name}</dt><dd>${children}</dd>`;
}

function Detail({ incident, snoozing, setSnoozing }) {
  const open = incident.state === "open";
  const verdict = incident.feedback?.verdict;
  const id = idOf(incident.stream_id);
  const name = id ? camera(id).stream.value.name : incident.stream_name;
  const from = rfc3339(Date.parse(incident.opened_at) - 10_000), to = rfc3339(Date.parse(incident.resolved_at ?? incident.last_seen_at) + 10_000);
  return html`<article class="incident" aria-labelledby="incident-title">
    <div class="row top-line"><h2 id="incident-title" class="grow">${incident.title}</h2>
      <span class=${`tag ${incident.severity}`}>${incident.severity}</span><span class=${`tag ${open ? "accent" : ""}`}>${open ? "Open" : "Resolved"}</span></div>
    <p class="soft">${id ? html`<a class="link" href=${streamPath(name)}>${name}</a>` : incident.stream_name} · began ${moment(incident.opened_at)} · ${open ? "for" : "lasted"} ${duration(lasted(incident, now.value))}${incident.reopened ? ` · came back ${plural(incident.reopened, "time")}` : ""}</p>
    <${Pictures} incident=${incident} />
    ${mayOperate.value && html`<div class="row wrap acts">
      ${open && html`<button class="button primary" disabled=${!!incident.acknowledged} onClick=${() => actions.acknowledge(incident)}><${Icon} name="check" size=${16} />${incident.acknowledged ? "Taken care of" : "Take care of it"}</button>`}
      ${!incident.seen_by.length && html`<button class="button" onClick=${() => actions.see(incident)}><${Icon} name="eye" size=${16} />Seen<kbd class="wide">E</kbd></button>`}
      <${Snooze} incident=${incident} open=${snoozing} setOpen=${setSnoozing} />
      <span class="row" role="group" aria-label="Was the alert right?">
        <button class="button" aria-pressed=${verdict === "right"} onClick=${() => actions.judge(incident, "right")}><${Icon} name="yes" size=${16} />Right<kbd class="wide">Y</kbd></button>
        <button class="button" aria-pressed=${verdict === "wrong"} onClick=${() => actions.judge(incident, "wrong")}><${Icon} name="no" size=${16} />Wrong<kbd class="wide">N</kbd></button></span>
      ${open && html`<button class="button plain" onClick=${() => actions.resolve(incident)}>Resolve</button>`}
    </div>`}
    ${incident.summary && html`<section class="panel"><header><h3>What happens</h3></header><p class="body">${incident.summary}</p></section>`}
    <section class="panel"><header><h3>Why it was raised</h3></header><dl class="details">
      <${Fact} name="Question">${incident.question}<//>
      <${Fact} name="Probability"><span class="number">${percent(incident.probability.max)} at most, ${percent(incident.probability.first)} at first, ${percent(incident.probability.last)} now</span><//>
      <${Fact} name="Windows"><span class="number">${count(incident.windows.yes)} yes, ${count(incident.windows.no)} no, ${count(incident.windows.unknown)} unknown</span><//>
      <${Fact} name="Last seen">${moment(incident.last_seen_at)}<//>
      ${incident.resolved_at && html`<${Fact} name="Resolved">${moment(incident.resolved_at)}: ${(RESOLVED[incident.resolve_reason] ?? incident.resolve_reason ?? "").toLowerCase()}<//>`}
      ${incident.acknowledged && html`<${Fact} name="Taken care of">by ${incident.acknowledged.by}, ${moment(incident.acknowledged.at)}${incident.acknowledged.note ? `: ${incident.acknowledged.note}` : ""}<//>`}
      ${incident.seen_by.length > 0 && html`<${Fact} name="Seen by">${incident.seen_by.join(", ")}<//>`}
      ${incident.silenced_by.length > 0 && html`<${Fact} name="Messages">snoozed<//>`}
      ${incident.deliveries.length > 0 && html`<${Fact} name="Sent">${incident.deliveries.slice(-4).map((each) => `${each.channel}: ${each.delivered ? moment(each.at) : (each.error ?? "failed")}`).join("; ")}<//>`}
    </dl></section>
    <p><a class="link" href=${streamPath(name, { since: from, until: to })}>See it on the camera's timeline</a></p>
  </article>`;
}

function useListed(filter) {
  const state = useSignal({ loading: true, error: null, next: null });
  const load = async (cursor) => {
    try {
      const page = await api.incidents({ limit: 100, cursor, state: filter === "open" ? "open" : null, unseen: filter === "unseen" ? true : null });
      page.incidents.forEach(putIncident);
      state.value = { loading: false, error: null, next: page.next_cursor };
    } catch (error) {
      state.value = { ...state.peek(), loading: false, error };
    }
  };
  useEffect(() => {
    state.value = { loading: true, error: null, next: null };
    if (phase.value === "ready") load();
  }, [filter, phase.value, generation.value]);
  return { ...state.value, more: () => load(state.value.next), retry: () => load() };
}

export default function Incidents({ id }) {
  const filter = query.value.get("show") ?? "open";
  const { loading, error, next, more, retry } = useListed(filter);
  const [snoozing, setSnoozing] = useState(false);
  const [unknown, setUnknown] = useState(null);
  const chosen = id ? incidents.value.get(id) : null;
  const listed = inOrder([...incidents.value.values()].filter((incident) => belongs(incident, filter) || incident.id === id));
  useEffect(() => {
    setSnoozing(false);
    setUnknown(null);
    if (id && !incidents.value.has(id) && phase.value === "ready") api.incident(id).then(putIncident, setUnknown);
  }, [id, phase.value]);
  const go = (incident) => incident && navigate(`/incidents/${incident.id}${location.search}`, { replace: !!id });
  const move = (by) => {
    const at = listed.findIndex((incident) => incident.id === id);
    const to = listed[at < 0 ? 0 : Math.max(0, Math.min(listed.length - 1, at + by))];
    go(to);
    if (to) requestAnimationFrame(() => document.querySelector(`[data-incident="${to.id}"]`)?.scrollIntoView({ block: "nearest" }));
  };
  const act = (run) => () => chosen && mayOperate.value && run(chosen);
  useKeys("Incidents", [
    ["j", "Next", () => move(1)],
    ["k", "Previous", () => move(-1)],
    ["ArrowDown", "", () => move(1)],
    ["ArrowUp", "", () => move(-1)],
    ["Enter", "Open; open its camera", () => (chosen ? navigate(streamPath(chosen.stream_name)) : go(listed[0]))],
    ["e", "Seen, and on to the next", () => { if (chosen && mayOperate.value) { actions.see(chosen); move(1); } }],
    ["a", "Take care of it", act((incident) => incident.state === "open" && actions.acknowledge(incident))],
    ["s", "Snooze", act(() => setSnoozing(true))],
    ["y", "The alert was right", act((incident) => actions.judge(incident, "right"))],
    ["n", "The alert was wrong", act((incident) => actions.judge(incident, "wrong"))],
    ["r", "Resolve", act((incident) => incident.state === "open" && actions.resolve(incident))],
    ["Escape", "Back to the list", () => (id ? navigate(`/incidents${location.search}`) : navigate("/"))],
  ]);
  const empty = filter === "open"
    ? html`<${Empty} icon="check" title="Nothing is open" text="An alert opens an incident here, and it stays until it is over."><button class="button" onClick=${() => setQuery({ show: "all" })}>Show past ones</button><//>`
    : filter === "unseen" ? html`<${Empty} icon="check" title="All seen" text="New incidents appear here."><button class="button" onClick=${() => setQuery({ show: "all" })}>Show all</button><//>`
    : html`<${Empty} icon="bell" title="No incident yet" text="Add a watch with an alert to a camera: a question that is answered with yes or no, every few seconds."><a class="button" href="/">Choose a camera</a><//>`;
  return html`
    <${Top} title="Incidents" back=${id ? `/incidents${location.search}` : null}>
      <span class="grow" />
      <div class="segments" role="group" aria-label="Which incidents">${FILTERS.map(([value, label]) => html`<button key=${value} aria-pressed=${filter === value} onClick=${() => setQuery({ show: value === "open" ? null : value })}>${label}</button>`)}</div>
    <//>
    <div class=${`inbox ${id ? "chosen" : error || (!listed.length && !loading) ? "bare" : ""}`}>
      <section class="inbox-list" aria-label="Incidents">
        ${error ? html`<${Failed} error=${error} retry=${retry} />`
          : !listed.length ? (loading ? html`<div aria-busy="true">${[1, 2, 3].map((line) => html`<div class="inbox-line" key=${line}><span class="thumb skeleton" /><span class="grow"><${Skeleton} lines=${2} /></span></div>`)}</div>` : empty)
          : html`<ul>${listed.map((incident) => html`<${Line} key=${incident.id} incident=${incident} current=${incident.id === id} />`)}</ul>`}
        ${next && html`<button class="button plain" onClick=${more}>Older ones</button>`}
      </section>
      <section class="inbox-detail" aria-label="Incident">
        ${chosen ? html`<${Detail} key=${chosen.id} ...${{ incident: chosen, snoozing, setSnoozing }} />`
          : unknown ? html`<${Empty} icon="warning" title="There is no such incident" text=${unknown.message}><a class="button" href="/incidents?show=all">All incidents</a><//>`
          : id ? html`<${Skeleton} lines=${6} />`
          : listed.length > 0 && html`<${Empty} icon="bell" title=${plural(listed.length, "incident")}><span class="row soft"><kbd>J</kbd> and <kbd>K</kbd> move, <kbd>E</kbd> marks as seen</span><//>`}
      </section>
    </div>`;
}
