/** Short messages at the bottom, most with Undo. */
import { signal } from "@preact/signals";
import { html } from "./html.js";

const toasts = signal([]);
const DELAY = 6000;
let shown = 0;

function show(text, { action, run, bad = false, end = () => {}, delay = DELAY }) {
  const toast = { key: ++shown, text, action, bad };
  const close = () => {
    clearTimeout(toast.timer);
    toasts.value = toasts.value.filter((each) => each !== toast);
  };
  toast.run = () => {
    close();
    run?.();
  };
  toast.timer = setTimeout(() => {
    close();
    end();
  }, delay);
  toasts.value = [...toasts.value.slice(-3), toast];
  return close;
}

/** Say that something happened; with `undo`, offer to take it back. */
export function say(text, undo) {
  show(text, undo ? { action: "Undo", run: undo } : { delay: 3500 });
}

/** Say that something failed. */
export function complain(error) {
  show(error.message ?? String(error), { bad: true, action: "Close", delay: 9000 });
}

const pending = new Set();

/**
 * Do something that cannot be taken back, after some seconds in which it can: `hide` at once,
 * `run` later, `restore` if it was undone or has failed.
 */
export function later(text, { hide, run, restore }) {
  hide();
  const commit = async (options) => {
    if (!pending.delete(commit)) return;
    try {
      await run(options);
    } catch (error) {
      restore();
      complain(error);
    }
  };
  pending.add(commit);
  show(text, {
    action: "Undo",
    run: () => {
      pending.delete(commit);
      restore();
    },
    end: commit,
  });
}

if (typeof addEventListener === "function") {
  addEventListener("pagehide", () => [...pending].forEach((commit) => commit({ keepalive: true })));
}

export function Toasts() {
  return html`<div class="toasts" role="status" aria-live="polite">
    ${toasts.value.map((toast) => html`<div key=${toast.key} class=${toast.bad ? "toast bad" : "toast"}>
      <span class="grow">${toast.text}</span>
      ${toast.action && html`<button onClick=${toast.run}>${toast.action}</button>`}
    </div>`)}
  </div>`;
}
