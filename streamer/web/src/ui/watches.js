/** The standing questions of a stream, edited in place. */
import { useState } from "preact/hooks";
import { api } from "../api.js";
import { camera, leaving, mayOperate, setLeaving } from "../store.js";
import { Icon } from "../icons.js";
import { html } from "./html.js";
import { Empty, Problem } from "./states.js";
import { later } from "./toast.js";

/** The kind of a watch: "text", "choice" or "alert"; "json" is edited elsewhere. */
export function kindOf(watch) {
  if (watch.alert) return "alert";
  return watch.response_format?.type === "choice" ? "choice" : watch.response_format?.type === "text" || !watch.response_format ? "text" : "json";
}

/** The fields of a form for a watch. */
export function formOf(watch) {
  return {
    prompt: watch?.prompt ?? "",
    window: String(watch?.window ?? 10),
    kind: watch ? kindOf(watch) : "text",
    choices: watch?.response_format?.choices?.join(", ") ?? "yes, no",
    title: watch?.alert?.title ?? "",
    severity: watch?.alert?.severity ?? "warning",
    probability: String(watch?.alert?.raise?.probability ?? 0.7),
  };
}

/** What a form asks of the API; of `watch` only what has changed. */
export function bodyOf(form, watch = null) {
  const body = {};
  const before = watch ? formOf(watch) : null;
  const changed = (...names) => !before || names.some((name) => form[name] !== before[name]);
  if (changed("prompt")) body.prompt = form.prompt.trim();
  if (changed("window")) body.window = Number(form.window);
  if (form.kind === "choice" && changed("kind", "choices")) {
    body.response_format = { type: "choice", choices: form.choices.split(",").map((each) => each.trim()).filter(Boolean) };
  }
  if (form.kind === "text" && before && before.kind !== "text") body.response_format = { type: "text" };
  if (form.kind === "alert" && changed("kind", "title", "severity", "probability")) {
    body.alert = { severity: form.severity, raise: { ...(watch?.alert?.raise ?? {}), probability: Number(form.probability) } };
    if (form.title.trim()) body.alert.title = form.title.trim();
  }
  return body;
}

function Form({ stream, watch, close }) {
  const [form, setForm] = useState(formOf(watch));
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const set = (name) => (event) => setForm({ ...form, [name]: event.target.value });
  const save = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      const body = bodyOf(form, watch);
      const saved = watch ? await api.editWatch(stream.id, watch.id, body) : await api.addWatch(stream.id, body);
      const signal = camera(stream.id).stream;
      const watches = signal.value.watches.filter((each) => each.id !== saved.id);
      const at = signal.value.watches.findIndex((each) => each.id === saved.id);
      watches.splice(at < 0 ? watches.length : at, 0, saved);
      signal.value = { ...signal.value, watches };
      close();
    } catch (problem) {
      setError(problem);
      setBusy(false);
    }
  };
  const kinds = [["text", "Text"], ["choice", "Choice"], ["alert", "Alert"]].filter(([kind]) => kind === "alert" || !watch?.alert);
  return html`<form class="watch-form stack" onSubmit=${save} onKeyDown=${(event) => { if (event.key === "Escape") { event.stopPropagation(); close(); } }}>
    <label class="label">Question about every window
      <textarea class="field" rows="2" required autofocus value=${form.prompt} onInput=${set("prompt")} placeholder="Is a car parked in front of the gate?" /></label>
    ${form.kind !== "json" && html`<div class="segments" role="group" aria-label="Kind of answer">
      ${kinds.map(([kind, label]) => html`<button type="button" key=${kind} aria-pressed=${form.kind === kind} onClick=${() => setForm({ ...form, kind })}>${label}</button>`)}
    </div>`}
    ${form.kind === "choice" && html`<label class="label">Answers, with commas between them<input class="field" required value=${form.choices} onInput=${set("choices")} /></label>`}
    ${form.kind === "alert" && html`
      <label class="label">Title of an incident<input class="field" value=${form.title} onInput=${set("title")} placeholder="Car in front of the gate" maxlength="200" /></label>
      <div class="row wrap">
        <label class="label">Severity<select class="field" value=${form.severity} onChange=${set("severity")}>
          ${["info", "warning", "critical"].map((each) => html`<option value=${each}>${each}</option>`)}</select></label>
        <label class="label">Probability from<input class="field" type="number" min="0.05" max="1" step="0.05" value=${form.probability} onInput=${set("probability")} /></label>
      </div>`}
    <label class="label">Seconds of one window<input class="field" type="number" min="0.1" max="3600" step="any" required value=${form.window} onInput=${set("window")} /></label>
    <${Problem} error=${error} />
    <div class="row"><button class="button primary" disabled=${busy}>${watch ? "Save" : "Add"}</button><button class="button plain" type="button" onClick=${close}>Cancel</button></div>
  </form>`;
}

function WatchLine({ stream, watch, edit }) {
  const remove = () => {
    later("Watch removed", {
      hide: () => setLeaving(watch.id, true),
      run: async (options) => {
        await api.removeWatch(stream.id, watch.id, options);
        const signal = camera(stream.id).stream;
        if (signal.value) signal.value = { ...signal.value, watches: signal.value.watches.filter((each) => each.id !== watch.id) };
        setLeaving(watch.id, false);
      },
      restore: () => setLeaving(watch.id, false),
    });
  };
  const kind = kindOf(watch);
  return html`<li class="watch">
    <div class="grow"><p>${watch.alert?.title && html`<strong>${watch.alert.title}: </strong>`}${watch.prompt}</p>
      <p class="row wrap small soft">
        ${kind === "alert" ? html`<span class=${`tag ${watch.alert.severity}`}><${Icon} name="bell" size=${13} />${watch.alert.severity}</span>` : kind !== "text" && html`<span class="tag">${kind === "choice" ? watch.response_format.choices.join(" · ") : "JSON"}</span>`}
        <span>every ${watch.window} s</span><span>up to ${watch.max_frames} frames</span>${watch.model && html`<span>${watch.model}</span>`}
      </p></div>
    ${mayOperate.value && html`<span class="row tight">
      <button class="button plain square" aria-label=${`Edit: ${watch.prompt}`} title="Edit" onClick=${edit}><${Icon} name="edit" size=${16} /></button>
      <button class="button plain square" aria-label=${`Remove: ${watch.prompt}`} title="Remove" onClick=${remove}><${Icon} name="trash" size=${16} /></button></span>`}
  </li>`;
}

/** All watches of a stream. */
export function Watches({ stream }) {
  const [editing, setEditing] = useState(null);
  const close = () => setEditing(null);
  const watches = stream.watches.filter((watch) => !leaving.value.has(watch.id));
  return html`<section class="panel" aria-labelledby="watches-title">
    <header><h2 id="watches-title" class="grow">Watches</h2>
      ${mayOperate.value && editing !== "new" && html`<button class="button plain" onClick=${() => setEditing("new")}><${Icon} name="plus" size=${15} />Add</button>`}</header>
    ${!watches.length && editing !== "new" && html`<${Empty} small icon="eye" title="No standing question" text="A watch asks the model about every few seconds of this camera." />`}
    <ul>${watches.map((watch) => editing === watch.id
      ? html`<li key=${watch.id}><${Form} stream=${stream} watch=${watch} close=${close} /></li>`
      : html`<${WatchLine} key=${watch.id} stream=${stream} watch=${watch} edit=${() => setEditing(watch.id)} />`)}
    </ul>
    ${editing === "new" && html`<${Form} stream=${stream} close=${close} />`}
  </section>`;
}

