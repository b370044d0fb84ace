/** The box to ask in, and answers as they are written, with their frames and their cost. */
import { useRef, useState } from "preact/hooks";
import { api } from "../api.js";
import { cost, plural } from "../format.js";
import { Icon } from "../icons.js";
import { again, cancel, forget, pending } from "../questions.js";
import { streamPath } from "../router.js";
import { rangeText } from "../time.js";
import { Thumbnails } from "./frames.js";
import { html } from "./html.js";
import { Sentence, Spinner } from "./states.js";

/** A text field that grows, and a button: Enter asks, Shift-Enter begins a line. */
export function AskBox({ placeholder, onAsk, id = "ask", disabled = false, initial = "" }) {
  const [text, setText] = useState(initial);
  const field = useRef(null);
  const send = (event) => {
    event?.preventDefault();
    const prompt = field.current.value.trim();
    if (!prompt || disabled) return;
    setText("");
    field.current.style.height = "";
    onAsk(prompt);
  };
  const onInput = (event) => {
    setText(event.target.value);
    event.target.style.height = "auto";
    event.target.style.height = `${Math.min(event.target.scrollHeight + 2, 180)}px`;
  };
  const onKeyDown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
    if (event.key === "Escape") field.current.blur();
  };
  return html`<form class="askbox" onSubmit=${send}>
    <textarea ref=${field} id=${id} class="field" rows="1" maxlength="32768" placeholder=${placeholder} aria-label=${placeholder} value=${text} onInput=${onInput} onKeyDown=${onKeyDown} />
    <button class="button primary square" aria-label="Ask" disabled=${disabled || !text.trim()}><${Icon} name="send" size=${17} /></button>
  </form>`;
}

function progress({ state, position, done, windows }) {
  if (state === "sending") return "Sending";
  if (state === "queued") return position ? `Waits: ${plural(position, "question")} before it` : "Waits";
  return windows ? `Looking: ${done ?? 0} of ${plural(windows, "window")}` : "Looking";
}

function Progress({ question }) {
  return html`<span class="row soft"><${Spinner} />${progress(question)} …</span>`;
}

// What was answered about each window of a question about several.
function Windows({ windows }) {
  return html`<ul class="windows">${windows.map((each) => html`<li key=${each.request_id}>
    <a class="tag" href=${streamPath(each.stream, { view: "seen", result: each.request_id, since: each.start, until: each.end })}>${each.stream}</a>
    <span class=${each.error ? "bad" : ""}>${each.error ?? each.text}</span>
    <span class="soft small number">${rangeText(each.start, each.end)}</span></li>`)}</ul>`;
}

/** One answer. `question` is a signal of questions.js. */
export function Answer({ question, named = false, onRange }) {
  const { id, prompt, stream, streams, since, until, state, text, result, error } = question.value;
  const open = pending(question.value);
  const when = result?.frames_from ? rangeText(result.frames_from, result.frames_to) : since ? rangeText(since, until) : "Now";
  return html`<article class="answer" aria-busy=${open}>
    <header class="row">
      ${streams ? html`<span class="tag">${plural(streams.length, "camera")}</span>` : named ? html`<a class="tag" href=${streamPath(stream)}>${stream}</a>` : html`<h3 class="grow">${prompt}</h3>`}
      ${named && html`<span class="grow" />`}
      ${open && id && html`<button class="button plain" onClick=${() => cancel(question)}>Cancel</button>`}
      ${!open && !named && html`<button class="button plain square" aria-label="Take it off the page" onClick=${() => forget(question)}><${Icon} name="close" size=${15} /></button>`}
    </header>
    <div aria-live="polite">
      ${text && html`<p class="said">${text}${open && html`<span class="caret" aria-hidden="true" />`}</p>`}
      ${open && !text && html`<${Progress} question=${question.value} />`}
      ${error && html`<p class="bad"><${Sentence} text=${error.message} /></p>`}
    </div>
    ${streams && result?.data?.windows?.length > 0 && html`<${Windows} windows=${result.data.windows} />`}
    ${result?.gaps?.length > 0 && html`<p class="warn small">${plural(result.gaps.length, "part")} of the range ${result.gaps.length === 1 ? "has" : "have"} no frames: the answer says nothing about them.</p>`}
    ${result?.stale && html`<p class="warn small">The newest frame was old when this was asked.</p>`}
    ${result && !error && html`<${Thumbnails} id=${id} load=${(options) => api.framesOfQuery(id, options)} />`}
    <footer class="row wrap soft small number">
      ${onRange && result?.frames_from ? html`<button class="link" onClick=${() => onRange(result)}>${when}</button>` : html`<span>${when}</span>`}
      ${result && html`<span>${cost(result)}</span>`}
      ${error && state !== "cancelled" && html`<button class="link" onClick=${() => again(question)}>Ask again</button>`}
    </footer>
  </article>`;
}
