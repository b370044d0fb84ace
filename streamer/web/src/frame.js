/** Changes that come one by one are taken over together, once for each frame that the browser draws. */
import { batch } from "@preact/signals-core";

// a page that is not shown draws no frames
const LONGEST = 250;
const MOST = 500;

let waiting = [];
let frame, timer;

// one that fails keeps the others from nothing
function attempt(change) {
  try {
    change();
  } catch (error) {
    queueMicrotask(() => { throw error; });
  }
}

/** Take over all changes that wait. */
export function flush() {
  clearTimeout(timer);
  globalThis.cancelAnimationFrame?.(frame);
  const changes = waiting;
  waiting = [];
  batch(() => changes.forEach(attempt));
}

/** Take over a change before the next frame is drawn, after those that came before it. */
export function beforeFrame(change) {
  waiting.push(change);
  if (waiting.length >= MOST) flush();
  else if (waiting.length === 1) {
    frame = globalThis.requestAnimationFrame?.(flush);
    timer = setTimeout(flush, LONGEST);
  }
}
