/** The wall: the newest picture and caption of each camera, trouble first. */
import { useComputed } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { plural, saying } from "../format.js";
import { Icon } from "../icons.js";
import { useKeys } from "../keys.js";
import { navigate, query, setQuery, streamPath } from "../router.js";
import { camera, mayOperate, openIncidents, phase, rank, shownIds } from "../store.js";
import { ago, now, secondsSince } from "../time.js";
import { html } from "../ui/html.js";
import { kiosk } from "../ui/kiosk.js";
import { conditionWord, LivePicture, Thumbnail, useCondition } from "../ui/picture.js";
import { Top } from "../ui/shell.js";
import { Sparkline } from "../ui/sparkline.js";
import { Empty, Sentence, Skeleton } from "../ui/states.js";

const COLUMNS = ["", "1", "2", "3", "4", "5", "6"];

/** The cameras in the order of the wall. */
function ordered(ids) {
  const keyed = ids.map((id) => {
    const { stream, state, incident } = camera(id);
    return [rank(state.value, incident.value !== null), stream.value?.name ?? "", id];
  });
  keyed.sort((a, b) => a[0] - b[0] || a[1].localeCompare(b[1], undefined, { numeric: true }));
  return keyed.map(([, , id]) => id).join(" ");
}

function Alarm({ incident }) {
  const path = `/incidents/${incident.id}`;
  return html`<li><a class=${`alarm ${incident.severity}`} href=${path}>
    <${Thumbnail} path=${incident.snapshot.best} width=${72} height=${44} />
    <span class="grow stack" style=${{ gap: 0 }}>
      <strong class="clip">${incident.title}</strong>
      <span class="soft small clip">${incident.stream_name} · ${ago(secondsSince(incident.opened_at, now.value))}${incident.acknowledged ? ` · ${incident.acknowledged.by} takes care` : ""}</span>
    </span>
  </a></li>`;
}

function Alarms() {
  const open = openIncidents.value;
  if (!open.length) return null;
  return html`<section aria-label="Open incidents"><ul class="alarms" style=${{ listStyle: "none" }}>
    ${open.slice(0, 12).map((incident) => html`<${Alarm} key=${incident.id} incident=${incident} />`)}
  </ul></section>`;
}

// What a tile says: what is wrong, else the newest result, else what is awaited.
function spoken(stream, trouble, newest) {
  if (trouble) return html`<${Sentence} text=${stream.error.message} />`;
  if (newest) return saying(newest);
  return stream.watches.length ? "No caption yet" : "No watch asks about this camera: add one";
}

function Tile({ id, width }) {
  const { results, costs, incident: { value: incident } } = camera(id);
  const { stream, state } = useCondition(id);
  if (!stream) return null;
  const newest = results.value.find((each) => each.kind === "caption") ?? results.value[0];
  const trouble = (state === "failed" || state === "lost") && stream.error;
  const spent = costs.value.at(-1);
  return html`<a class=${`tile ${incident ? `alert ${incident.severity}` : ""}`} href=${streamPath(stream.name)} data-stream=${stream.name} data-state=${state}>
    <${LivePicture} id=${id} fps=${1} width=${width} />
    <span class="about">
      <span class="row"><span class=${`dot ${state}`} /><span class="name clip">${stream.name}</span>
        <span class=${`small clip ${state === "live" ? "aloud" : "soft"}`}>${conditionWord(state)}</span></span>
      <span class="row spent"><span class="small soft number" aria-hidden="true" title="Tokens per frame">${spent === undefined ? "" : Math.round(spent)}</span>
        <${Sparkline} values=${costs.value} label=${spent === undefined ? "Tokens per frame: none yet" : `Tokens per frame: ${Math.round(spent)}`} /></span>
      <span class=${trouble || (state === "live" && newest) ? "caption fresh" : "caption"} title=${newest ? ago(secondsSince(newest.created_at, now.peek())) : ""}>${spoken(stream, trouble, newest)}</span>
    </span>
  </a>`;
}

function Loading() {
  return html`<div class="wall" key="loading" aria-busy="true">${[1, 2, 3, 4].map((key) => html`<div class="tile" key=${key}>
    <div class="picture" /><div class="about"><${Skeleton} lines=${2} /></div></div>`)}</div>`;
}

function Nothing() {
  return html`<${Empty} icon="camera" title="No camera is attached yet"
    text=${mayOperate.value ? "Attach one by its address. Captions come a few seconds later." : "Sign in with a key that may operate to attach one."}>
    ${mayOperate.value && html`<a class="button primary" href="/attach"><${Icon} name="plus" size=${16} />Attach a camera</a>`}
  <//>`;
}

export default function Wall() {
  const columns = query.value.get("columns") ?? "";
  const order = useComputed(() => ordered(shownIds.value));
  const ids = order.value ? order.value.split(" ") : [];
  const beside = columns ? Number(columns) : Math.min(3, ids.length);
  const width = beside < 2 ? 1280 : beside === 2 ? 960 : beside === 3 ? 640 : 480;
  useKeys("Cameras", [
    ["f", "Only the wall, in full screen", () => (kiosk.value = !kiosk.value)],
    ["Escape", "", () => (kiosk.value = false)],
    ["[", "Fewer columns", () => setQuery({ columns: COLUMNS[Math.max(0, COLUMNS.indexOf(columns) - 1)] })],
    ["]", "More columns", () => setQuery({ columns: COLUMNS[Math.min(6, COLUMNS.indexOf(columns) + 1)] })],
    ...Array.from({ length: 9 }, (_, index) => [String(index + 1), "", () => ids[index] && navigate(streamPath(camera(ids[index]).stream.value.name))]),
  ]);
  useEffect(() => () => (kiosk.value = false), []);
  const ready = phase.value === "ready";
  const style = columns ? { "--columns": columns, "--tile": "0px" } : {};
  return html`
    <${Top} title="Cameras">
      <span class="soft number clip wide">${ready && ids.length ? plural(ids.length, "camera") : ""}</span>
      <span class="grow" />
      ${ready && ids.length > 0 && html`
        <label class="row small soft wide"><span class="aloud">Columns</span>
          <select class="field" value=${columns} onChange=${(event) => setQuery({ columns: event.target.value })}>
            ${COLUMNS.map((each) => html`<option value=${each}>${each === "" ? "Fit" : `${each} columns`.replace("1 columns", "1 column")}</option>`)}
          </select></label>
        <button class="button plain square wide" aria-label="Only the wall, in full screen" title="Only the wall (F)" onClick=${() => (kiosk.value = true)}><${Icon} name="expand" /></button>
        ${mayOperate.value && html`<a class="button" href="/attach"><${Icon} name="plus" size=${16} /><span>Attach</span></a>`}`}
    <//>
    <${Alarms} />
    ${!ready ? html`<${Loading} />` : !ids.length ? html`<${Nothing} />`
      : html`<div class="wall" key="loaded" style=${style}>${ids.map((id) => html`<${Tile} key=${id} id=${id} width=${width} />`)}</div>`}`;
}
