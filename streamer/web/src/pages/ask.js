/** Ask all cameras at once. */
import { useEffect, useRef, useState } from "preact/hooks";
import { plural } from "../format.js";
import { Icon } from "../icons.js";
import { useKeys } from "../keys.js";
import { ask, forget, pending, questions } from "../questions.js";
import { query, setQuery } from "../router.js";
import { camera, phase, shownIds } from "../store.js";
import { rangeText, rfc3339, serverNow } from "../time.js";
import { Answer, AskBox } from "../ui/answers.js";
import { html } from "../ui/html.js";
import { Top } from "../ui/shell.js";
import { Empty, Skeleton } from "../ui/states.js";

/** Cameras that are asked at once, at most. */
export const MOST = 24;

const RANGES = [["", "Now"], ["60", "Last minute"], ["300", "Last 5 minutes"], ["900", "Last 15 minutes"], ["3600", "Last hour"]];

/** Questions of one group, the newest group first: [[group, [signals]], ...]. */
export function grouped(all) {
  const groups = new Map();
  for (const question of all) {
    const { group } = question.value;
    if (group === null) continue;
    groups.set(group, [...(groups.get(group) ?? []), question]);
  }
  return [...groups].sort((a, b) => b[0] - a[0]);
}

let group = 0;

function Group({ members }) {
  const { prompt, since, until } = members[0].value;
  const open = members.filter((question) => pending(question.value)).length;
  const ordered = [...members].sort((a, b) => a.value.stream.localeCompare(b.value.stream, undefined, { numeric: true }));
  return html`<section class="panel group" aria-label=${prompt}>
    <header><h2 class="grow">${prompt}</h2><span class="soft small number">${since ? rangeText(since, until) : "Now"}${open ? ` · ${members.length - open} of ${plural(members.length, "answer")}` : ""}</span>
      <button class="button plain square" aria-label="Take it off the page" onClick=${() => members.forEach(forget)}><${Icon} name="close" size=${15} /></button></header>
    <div class=${members.length > 1 ? "answers" : "answers one"}>${ordered.map((question) => html`<${Answer} key=${question.value.key} question=${question} named />`)}</div>
  </section>`;
}

export default function Ask() {
  const params = query.value;
  const [left, setLeft] = useState(new Set());
  const first = useRef(params.get("q"));
  const names = shownIds.value.map((id) => camera(id).stream.value?.name).filter(Boolean).sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
  const chosen = names.filter((name) => !left.has(name)).slice(0, MOST);
  const range = params.get("last") ?? "";
  const together = params.get("answer") === "one" && chosen.length > 1;
  const onAsk = (prompt) => {
    const until = serverNow();
    const since = range ? rfc3339(until - Number(range) * 1000) : null;
    group += 1;
    if (together) ask({ prompt, streams: chosen, since, until: since && rfc3339(until), group });
    else for (const stream of chosen) ask({ prompt, stream, since, until: since && rfc3339(until), group });
  };
  useEffect(() => {
    if (!first.current || phase.value !== "ready" || !chosen.length) return;
    onAsk(first.current);
    first.current = null;
    setQuery({ q: null });
  }, [phase.value, chosen.length]);
  useKeys("Ask", [["a", "Type a question", () => document.getElementById("ask").focus()]]);
  const toggle = (name) => {
    const next = new Set(left);
    if (!next.delete(name)) next.add(name);
    setLeft(next);
  };
  const groups = grouped(questions.value);
  return html`
    <${Top} title="Ask" />
    ${phase.value !== "ready" ? html`<div class="askall" key="loading" aria-busy="true"><div class="panel body"><${Skeleton} lines=${3} /></div></div>` : !names.length
      ? html`<${Empty} icon="ask" title="There is no camera to ask" text="Attach one first."><a class="button primary" href="/attach">Attach a camera</a><//>`
      : html`<div class="askall" key="loaded">
        <section class="panel body" aria-label="Question">
          <${AskBox} placeholder=${chosen.length === 1 ? `Ask ${chosen[0]}` : `Ask ${plural(chosen.length, "camera")} at once`} onAsk=${onAsk} disabled=${!chosen.length} />
          <div class="row wrap">
            <label><span class="aloud">About</span><select class="field" value=${range} onChange=${(event) => setQuery({ last: event.target.value })}>${RANGES.map(([value, label]) => html`<option key=${value} value=${value}>${label}</option>`)}</select></label>
            ${names.length > 1 && html`<div class="segments" role="group" aria-label="Answers"><button aria-pressed=${!together} onClick=${() => setQuery({ answer: null })}>Each camera</button><button aria-pressed=${together} disabled=${chosen.length < 2} onClick=${() => setQuery({ answer: "one" })}>One answer</button></div>`}
            <div class="chips" role="group" aria-label="Cameras to ask">
              ${names.length > 1 && html`<button class="chip" onClick=${() => setLeft(left.size ? new Set() : new Set(names))}>${left.size ? "All" : "None"}</button>`}
              ${names.map((name) => html`<button key=${name} class="chip" aria-pressed=${!left.has(name)} onClick=${() => toggle(name)}>${name}</button>`)}
            </div>
          </div>
          ${names.length - left.size > MOST && html`<p class="warn small">${MOST} cameras are asked at once, at most.</p>`}
        </section>
        ${groups.length ? groups.map(([number, members]) => html`<${Group} key=${number} members=${members} />`)
          : html`<${Empty} icon="ask" title="Ask anything that can be seen" text=${together ? "All cameras are looked at, and one answer sums up what they show." : "Each camera is asked by itself, and answers with the pictures and the times that the answer rests on."} />`}
      </div>`}`;
}
