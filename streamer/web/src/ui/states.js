/** Empty, loading and failed states, each with the next action. */
import { Icon } from "../icons.js";
import { html } from "./html.js";

/** A sentence, and what to do next. */
export function Empty({ icon = "camera", title, text, children, small = false }) {
  return html`<div class=${small ? "state small" : "state"}>
    <${Icon} name=${icon} size=${small ? 22 : 28} />
    <h2>${title}</h2>
    ${text && html`<p>${text}</p>`}
    ${children && html`<div class="row">${children}</div>`}
  </div>`;
}

/** A failure: its reason, and a button that tries again. */
export function Failed({ error, retry, title = "This could not be loaded", small = false }) {
  return html`<div class=${small ? "state small" : "state"} role="alert">
    <${Icon} name="warning" size=${small ? 22 : 28} />
    <h2>${title}</h2>
    <p><${Sentence} text=${error.message} /></p>
    ${retry && html`<div class="row"><button class="button" onClick=${retry}>Try again</button></div>`}
  </div>`;
}

/** A failure within a form. */
export function Problem({ error }) {
  if (!error) return null;
  return html`<div class="problem" role="alert"><${Icon} name="warning" size=${16} /><span><${Sentence} text=${error.message ?? error} /></span></div>`;
}

/** Lines in the place of text that is not loaded yet. */
export function Skeleton({ lines = 3 }) {
  return html`<div class="stack" aria-hidden="true">
    ${Array.from({ length: lines }, (_, line) => html`<div class="skeleton" style=${{ height: "14px", width: `${92 - ((line * 23) % 50)}%` }} />`)}
  </div>`;
}

/** A sentence of the service, in which `commands` stand between backticks. */
export function Sentence({ text }) {
  return (text ?? "").split("`").map((piece, index) => (index % 2 ? html`<code>${piece}</code>` : piece));
}

export function Spinner() {
  return html`<span class="spinner" aria-hidden="true" />`;
}
