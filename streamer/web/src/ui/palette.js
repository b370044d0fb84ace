/** The palette (Ctrl-K): every place and every action, by a few letters. */
import { signal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { score } from "../format.js";
import { Icon } from "../icons.js";
import { navigate, streamPath } from "../router.js";
import { api } from "../api.js";
import { askForKey, camera, mayOperate, openIncidents, session, shownIds, socket } from "../store.js";
import { toggleTheme } from "../theme.js";
import { html } from "./html.js";
import { helpOpen } from "./help.js";
import { kiosk } from "./kiosk.js";
import { complain } from "./toast.js";

export const paletteOpen = signal(false);

async function signOut() {
  try {
    await api.signOut();
    socket.stop(); // it was opened with the session, and would go on
    askForKey();
  } catch (error) {
    complain(error);
  }
}

function entries(typed) {
  const go = (to) => () => navigate(to);
  const found = [
    ...openIncidents.value.map((each) => ({ title: `${each.title}, ${each.stream_name}`, icon: "bell", hint: "Incident", run: go(`/incidents/${each.id}`) })),
    ...shownIds.value.map((id) => camera(id).stream.value).filter(Boolean).map((stream) => ({ title: stream.name, icon: "camera", hint: "Camera", run: go(streamPath(stream.name)) })),
    { title: "Cameras", icon: "wall", hint: "G then W", run: go("/") },
    { title: "Incidents", icon: "bell", hint: "G then I", run: go("/incidents") },
    { title: "Search", icon: "search", hint: "G then S", run: go("/search") },
    { title: "Ask all cameras", icon: "ask", hint: "G then A", run: go("/ask") },
    { title: "System", icon: "system", hint: "G then Y", run: go("/system") },
    mayOperate.value && { title: "Attach a camera", icon: "plus", hint: "G then N", run: go("/attach") },
    { title: "Switch between light and dark", icon: "moon", run: toggleTheme },
    { title: "Show only the wall", icon: "expand", hint: "F", run: () => { navigate("/"); kiosk.value = true; } },
    { title: "Keys", icon: "keys", hint: "?", run: () => (helpOpen.value = true) },
    { title: "Reference of the API", icon: "next", run: () => location.assign("/docs") },
    session.value?.key && { title: "Sign out", icon: "out", run: signOut },
  ].filter(Boolean);
  const ranked = found.map((entry) => [score(typed, `${entry.title} ${entry.hint === "Camera" ? "camera" : ""}`), entry]).filter(([points]) => points > 0);
  if (typed.trim()) {
    ranked.sort((a, b) => b[0] - a[0]);
    const text = encodeURIComponent(typed.trim());
    ranked.push([0, { title: `Search for “${typed.trim()}”`, icon: "search", run: go(`/search?q=${text}`) }]);
    ranked.push([0, { title: `Ask all cameras “${typed.trim()}”`, icon: "ask", run: go(`/ask?q=${text}`) }]);
  }
  return ranked.map(([, entry]) => entry).slice(0, 60);
}

function Content({ close }) {
  const [typed, setTyped] = useState("");
  const [at, setAt] = useState(0);
  const list = useRef(null);
  const shown = entries(typed);
  const place = Math.min(at, shown.length - 1);
  useEffect(() => list.current?.children[place]?.scrollIntoView({ block: "nearest" }), [place]);
  const choose = (entry) => {
    close();
    entry?.run();
  };
  const onKeyDown = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) setAt((place + step + shown.length) % shown.length);
    else if (event.key === "Enter" && !event.isComposing) choose(event.target.value === typed ? shown[place] : entries(event.target.value)[0]);
    else return;
    event.preventDefault();
  };
  return html`
    <input autofocus type="text" placeholder="Go to a camera, do, search or ask …" aria-label="Go to, do, search or ask"
      role="combobox" aria-expanded="true" aria-controls="palette-list" aria-activedescendant=${`palette-${place}`}
      value=${typed} onInput=${(event) => { setTyped(event.target.value); setAt(0); }} onKeyDown=${onKeyDown} />
    <ul id="palette-list" role="listbox" aria-label="Places and actions" ref=${list}>
      ${shown.map((entry, index) => html`<li id=${`palette-${index}`} key=${entry.title + entry.hint} role="option" aria-selected=${index === place}
        onPointerMove=${() => setAt(index)} onClick=${() => choose(entry)}>
        <${Icon} name=${entry.icon} size=${17} /><span class="clip">${entry.title}</span>
        ${entry.hint && html`<span class="hint">${entry.hint}</span>`}
      </li>`)}
    </ul>`;
}

export function Palette() {
  const dialog = useRef(null);
  const open = paletteOpen.value;
  useLayoutEffect(() => {
    if (open && !dialog.current.open) dialog.current.showModal();
    if (!open && dialog.current.open) dialog.current.close();
  }, [open]);
  const close = () => (paletteOpen.value = false);
  return html`<dialog class="palette" ref=${dialog} aria-label="Palette" onClose=${close} onClick=${(event) => event.target === dialog.current && close()}>
    ${open && html`<${Content} close=${close} />`}
  </dialog>`;
}
