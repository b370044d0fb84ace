/** The newest pictures of a stream, and the notes that are shown without one. */
import { useEffect, useRef, useState } from "preact/hooks";
import { CanvasFeed } from "../live.js";
import { camera, condition, newestFrameTime } from "../store.js";
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

/** How a stream is now: `{stream, state, age}`; renewed each second. */
export function useCondition(id) {
  const { stream, pictureAt } = camera(id);
  const known = stream.value;
  if (!known) return { stream: null, state: "waiting", age: null };
  const at = newestFrameTime(known, pictureAt.value);
  return { stream: known, state: condition(known, at, now.value), age: secondsSince(at, now.value) };
}

/** The age of the newest picture: "3 s ago". */
export function Age({ id }) {
  const { age } = useCondition(id);
  return age === null ? null : html`<span class="age number">${ago(age)}</span>`;
}

/** A small picture; a dark field with a camera where there is none. */
export function Thumbnail({ path, width, height }) {
  const [lost, setLost] = useState(null);
  if (!path || path === lost) return html`<span class="thumb none"><${Icon} name="camera" size=${16} /></span>`;
  return html`<img class="thumb" src=${path} width=${width} height=${height} alt="" loading="lazy" onError=${() => setLost(path)} />`;
}

/** The newest pictures of a stream. */
export function LivePicture({ id, fps, width }) {
  const canvas = useRef(null);
  const { stream, state, age } = useCondition(id);
  useEffect(() => {
    const feed = new CanvasFeed(canvas.current, id, { fps, width });
    return () => feed.close();
  }, [id, fps, width]);
  const old = state !== "live" && state !== "waiting";
  const name = stream?.name ?? "camera";
  const nothing = age === null;
  return html`<div class=${old ? "picture old" : "picture"}>
    <canvas ref=${canvas} width="16" height="9" role="img" aria-label=${`Newest picture of ${name}`} />
    ${state !== "lost" && state !== "failed" && html`<${Age} id=${id} />`}
    ${(nothing || state === "failed" || state === "lost") && html`<div class="note">
      <${Icon} name=${state === "failed" || state === "lost" ? "warning" : state === "paused" ? "pause" : "camera"} size=${22} />
      <span>${nothing ? (state === "waiting" ? "Waiting for the first picture" : WORDS[state]) : `${WORDS[state]} ${duration(age)} ago`}</span>
    </div>`}
  </div>`;
}
