/** The newest pictures of a stream, and the notes that are shown without one. */
import { useComputed } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";
import { CanvasFeed } from "../live.js";
import { camera } from "../store.js";
import { ago, duration, now, secondsSince } from "../time.js";
import { Icon } from "../icons.js";
import { html } from "./html.js";

const WORDS = {
  live: "Live",
  stale: "No new picture",
  waiting: "Opening",
  lost: "Connection lost",
  failed: "Failed",
  paused: "Paused",
  ended: "Ended",
};

/** The word for a condition. */
export function conditionWord(state) {
  return WORDS[state] ?? state;
}

/** How a stream is now: `{stream, state}`. */
export function useCondition(id) {
  const { stream, state } = camera(id);
  return { stream: stream.value, state: state.value };
}

/** Seconds since the newest picture, renewed each second; null: there is none. */
export function useAge(id) {
  return secondsSince(camera(id).frameTime.value, now.value);
}

/** The age of the newest picture: "3 s ago". */
export function Age({ id }) {
  const age = useAge(id);
  return age === null ? null : html`<span class="age number">${ago(age)}</span>`;
}

/** A small picture; a dark field with a camera where there is none. */
export function Thumbnail({ path, width, height }) {
  const [lost, setLost] = useState(null);
  if (!path || path === lost) return html`<span class="thumb none"><${Icon} name="camera" size=${16} /></span>`;
  return html`<img class="thumb" src=${path} width=${width} height=${height} alt="" loading="lazy" onError=${() => setLost(path)} />`;
}

function Since({ id }) {
  return duration(useAge(id) ?? 0);
}

/** The newest pictures of a stream; with `video`, its live video hides them. */
export function LivePicture({ id, fps, width, video = false, children }) {
  const canvas = useRef(null);
  const { stream, state } = useCondition(id);
  useEffect(() => {
    const feed = new CanvasFeed(canvas.current, id, { fps, width });
    return () => feed.close();
  }, [id, fps, width]);
  const old = state !== "live" && state !== "waiting";
  const name = stream?.name ?? "camera";
  const nothing = useComputed(() => camera(id).frameTime.value === null).value;
  return html`<div class=${old ? "picture old" : "picture"}>
    <canvas ref=${canvas} width="16" height="9" role="img" aria-label=${`Newest picture of ${name}`} />
    ${children}
    ${state !== "lost" && state !== "failed" && (video && state === "live" ? html`<span class="age">Live video</span>` : html`<${Age} id=${id} />`)}
    ${(nothing || state === "failed" || state === "lost") && html`<div class="note">
      <${Icon} name=${state === "failed" || state === "lost" ? "warning" : state === "paused" ? "pause" : "camera"} size=${22} />
      <span>${nothing ? (state === "waiting" ? "Waiting for the first picture" : WORDS[state]) : html`${WORDS[state]} <${Since} id=${id} /> ago`}</span>
    </div>`}
  </div>`;
}
