/** The frames that the model saw, with the tiles of the plan drawn over them, and why. */
import { useEffect, useState } from "preact/hooks";
import { plural } from "../format.js";
import { clockTime, moment } from "../time.js";
import { Icon } from "../icons.js";
import { html } from "./html.js";

/** How a grid is written: "2 × 2 tiles and an overview", "1 tile". */
export function gridText(grid) {
  if (!grid) return "";
  const [columns, rows] = grid;
  return columns * rows === 1 ? "1 tile" : `${columns} × ${rows} tiles and an overview`;
}

/** Where the lines of a grid are, in percent: `{x: [...], y: [...]}`. */
export function gridLines([columns, rows]) {
  const inner = (count) => Array.from({ length: count - 1 }, (_, index) => ((index + 1) * 100) / count);
  return { x: inner(columns), y: inner(rows) };
}

/** Read the frames of a result or of a query once. */
export function useFrames(load, key) {
  const [found, setFound] = useState({ frames: null, error: null });
  const [attempt, setAttempt] = useState(0);
  useEffect(() => {
    const stop = new AbortController();
    setFound({ frames: null, error: null });
    load({ signal: stop.signal }).then(
      (list) => setFound({ frames: list.frames, error: null }),
      (error) => error.name === "AbortError" || setFound({ frames: null, error }),
    );
    return () => stop.abort();
  }, [key, attempt]);
  return { ...found, retry: () => setAttempt(attempt + 1) };
}

function Tiles({ grid }) {
  const { x, y } = gridLines(grid);
  return html`<svg class="tiles" viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">
    ${[...x.map((at) => `M${at} 0V100`), ...y.map((at) => `M0 ${at}H100`), "M0 0H100V100H0Z"].map((path) => html`<path d=${path} />`)}
  </svg>`;
}

/** Frames one at a time, with tiles and the reason for them, and all of them as a strip. */
export function SeenFrames({ result, load }) {
  const { frames, error, retry } = useFrames(load, result.request_id);
  const [at, setAt] = useState(null);
  const [tiles, setTiles] = useState(true);
  useEffect(() => setAt(null), [result.request_id]);
  if (error) return html`<div class="picture"><div class="note"><span>${error.message}</span><button class="button" onClick=${retry}>Try again</button></div></div>`;
  if (!frames) {
    const several = result.frames > 1;
    return html`<div class="seen" aria-busy="true"><div class="picture" /><div class="reason" />${several && html`<div class="strip"><span class="gone" /></div>`}</div>`;
  }
  if (!frames.length) return html`<div class="picture"><div class="note"><${Icon} name="film" /><span>No frames belong to this result.</span></div></div>`;
  const size = (frame) => (frame.url ? 1000 : 0) + (frame.grid?.[0] ?? 1) * (frame.grid?.[1] ?? 1);
  const most = frames.reduce((best, frame, index) => (size(frame) >= size(frames[best]) ? index : best), 0);
  const place = Math.min(at ?? most, frames.length - 1);
  const frame = frames[place];
  const reason = result.plan?.[place]?.reason;
  const ratio = frame.width && frame.height ? `${frame.width} / ${frame.height}` : "16 / 9";
  const step = (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    setAt(Math.max(0, Math.min(frames.length - 1, place + by)));
  };
  return html`<div class="seen" onKeyDown=${step}>
    <div class="picture" title=${reason ?? ""}>
      ${frame.url
        ? html`<div class="fitted" style=${{ aspectRatio: ratio }}><img src=${frame.url} alt=${`Frame of ${moment(frame.time)}`} />${tiles && frame.grid && html`<${Tiles} grid=${frame.grid} />`}</div>`
        : html`<div class="note"><${Icon} name="clock" /><span>This frame is not kept any more</span></div>`}
      <span class="age number">${clockTime(frame.time)}</span>
    </div>
    <div class="reason">
      <span class="tag accent">${gridText(frame.grid) || "Tiles unknown"}</span>
      <span class="soft clip grow" title=${reason ?? ""}>${reason ?? ""}</span>
      <button class="button plain square" aria-pressed=${tiles} aria-label="Show tiles" title="Show tiles" onClick=${() => setTiles(!tiles)}><${Icon} name="grid" size=${16} /></button>
    </div>
    ${frames.length > 1 && html`<div class="strip" role="group" aria-label=${plural(frames.length, "frame")}>
      ${frames.map((each, index) => html`<button key=${index} aria-pressed=${index === place} aria-label=${`Frame ${index + 1}, ${clockTime(each.time)}, ${gridText(each.grid)}`} onClick=${() => setAt(index)}>
        ${each.url ? html`<img src=${each.url} alt="" loading="lazy" />` : html`<span class="gone" />`}
        <span class="badge">${each.grid && each.grid[0] * each.grid[1] > 1 ? `${each.grid[0]}×${each.grid[1]}` : "1"}</span>
      </button>`)}
    </div>`}
  </div>`;
}

const MAX_THUMBNAILS = 8;

/** A row of small pictures: those that an answer used. */
export function Thumbnails({ load, id }) {
  const { frames, error } = useFrames(load, id);
  const [large, setLarge] = useState(null);
  if (error) return null;
  const shown = (frames ?? []).filter((frame) => frame.url);
  const step = Math.max(1, shown.length / MAX_THUMBNAILS);
  const chosen = Array.from({ length: Math.min(MAX_THUMBNAILS, shown.length) }, (_, index) => shown[Math.floor(index * step)]);
  if (frames && !chosen.length) return html`<p class="soft small">The frames are not kept any more.</p>`;
  return html`<div class="thumbs">
    ${(frames ? chosen : [null, null]).map((frame, index) => frame
      ? html`<button key=${frame.id} class="thumbnail" aria-label=${`Frame of ${moment(frame.time)}: show it large`} aria-pressed=${large === index} onClick=${() => setLarge(large === index ? null : index)}>
          <img src=${frame.url} alt="" loading="lazy" /><span class="number">${clockTime(frame.time)}</span></button>`
      : html`<span key=${index} class="thumbnail skeleton" />`)}
    ${large !== null && chosen[large] && html`<img class="large" src=${chosen[large].url} alt=${`Frame of ${moment(chosen[large].time)}`} />`}
  </div>`;
}
