/** The frame of the page: navigation, what is wrong with the installation, and the page itself. */
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { plural } from "../format.js";
import { Icon } from "../icons.js";
import { useKeys } from "../keys.js";
import { address, navigate, route, streamPath } from "../router.js";
import { announcement, camera, link, mayOperate, missing, phase, shownIds, start, unseenCount } from "../store.js";
import { duration, now } from "../time.js";
import { toggleTheme } from "../theme.js";
import { Help, helpOpen } from "./help.js";
import { html } from "./html.js";
import { kiosk } from "./kiosk.js";
import { Palette, paletteOpen } from "./palette.js";
import { conditionWord, useCondition } from "./picture.js";
import { Failed, Sentence } from "./states.js";
import { Toasts } from "./toast.js";

const PLACES = [
  ["/", "wall", "Cameras", "wall"],
  ["/incidents", "bell", "Incidents", "incidents"],
  ["/search", "search", "Search", "search"],
  ["/ask", "ask", "Ask", "ask"],
  ["/system", "system", "System", "system"],
];

const base = new URL("../..", import.meta.url).pathname.replace(/\/$/, "");

function Count() {
  const unseen = unseenCount.value;
  return unseen > 0 && html`<span class="count number" aria-label=${`${unseen} new`}>${unseen > 99 ? "99+" : unseen}</span>`;
}

function Place({ to, icon, name, page, phone }) {
  const current = route.value.page === page ? "page" : null;
  return html`<a class=${phone ? "" : "nav"} href=${to} aria-current=${current}>
    <${Icon} name=${icon} size=${phone ? 21 : 17} /><span>${name}</span>${page === "incidents" && html`<${Count} />`}
  </a>`;
}

function CameraLink({ id }) {
  const { stream, state } = useCondition(id);
  if (!stream) return null;
  const to = streamPath(stream.name);
  return html`<a class="nav" href=${to} aria-current=${address.value.split("?")[0] === to ? "page" : null}>
    <span class=${`dot ${state}`} title=${conditionWord(state)} /><span class="clip">${stream.name}</span>
    <span class="aloud">${conditionWord(state)}</span></a>`;
}

function Side() {
  const ids = [...shownIds.value].sort((a, b) => (camera(a).stream.value?.name ?? "").localeCompare(camera(b).stream.value?.name ?? ""));
  return html`<div class="side">
    <a class="brand" href="/"><img src=${`${base}/icon.svg`} width="22" height="22" alt="" /><span>NVILA Streamer</span></a>
    <nav aria-label="Pages">
      ${PLACES.map(([to, icon, name, page]) => html`<${Place} key=${to} ...${{ to, icon, name, page }} />`)}
    </nav>
    ${ids.length > 0 && html`<h2 id="side-cameras">Cameras</h2>
    <nav class="cameras" aria-labelledby="side-cameras">${ids.slice(0, 60).map((id) => html`<${CameraLink} key=${id} id=${id} />`)}</nav>`}
    <div class="foot">
      ${mayOperate.value && html`<a class="nav" href="/attach" aria-current=${route.value.page === "attach" ? "page" : null}><${Icon} name="plus" size=${17} /><span>Attach a camera</span></a>`}
      <button class="nav" onClick=${() => (paletteOpen.value = true)}><${Icon} name="keys" size=${17} /><span>Commands</span><kbd class="count-free">Ctrl K</kbd></button>
      <button class="nav" onClick=${toggleTheme}><${Icon} name="moon" size=${17} /><span>Light or dark</span></button>
    </div>
  </div>`;
}

function Bottom() {
  return html`<nav class="bottom" aria-label="Pages">
    ${PLACES.map(([to, icon, name, page]) => html`<${Place} key=${to} phone ...${{ to, icon, name, page }} />`)}
  </nav>`;
}

function Lost() {
  const { state, since } = link.value;
  const seconds = (Date.now() - since) / 1000;
  // `now` is read, so that this is drawn each second; screen readers hear the message once
  if (now.value === 0 || state !== "lost" || seconds < 2) return null;
  return html`<div class="notice"><span class="spinner" aria-hidden="true" />
    <span class="grow">The service cannot be reached<span aria-hidden="true"> for ${duration(seconds)}</span>. What is shown may be out of date. The page tries again by itself.</span></div>`;
}

function Missing() {
  const closed = useSignal("");
  const messages = missing.value.map((part) => part.message).filter(Boolean);
  const key = messages.join();
  if (!messages.length || closed.value === key) return null;
  return html`<div class="notice"><${Icon} name="warning" size=${16} />
    <p class="grow narrow"><a class="link" href="/system">${plural(messages.length, "part")} of the service ${messages.length === 1 ? "does" : "do"} not run</a></p>
    <ul class="grow wide">${messages.map((message) => html`<li key=${message}><${Sentence} text=${message.replace(/\.?$/, ".")} /></li>`)}</ul>
    <button class="button plain square" aria-label="Close" onClick=${() => (closed.value = key)}><${Icon} name="close" size=${15} /></button></div>`;
}

/** The head of a page: its name, and what can be done. */
export function Top({ title, back, children }) {
  const heading = useRef(null);
  useEffect(() => {
    document.title = `${title} · NVILA Streamer`;
  }, [title]);
  const path = address.value.split("?")[0];
  useEffect(() => {
    if (Top.visited && Top.visited !== path) heading.current?.focus({ preventScroll: true });
    Top.visited = path;
  }, [path]);
  return html`<header class="top">
    ${back && html`<a class="button plain square" href=${back} aria-label="Back"><${Icon} name="back" /></a>`}
    <h1 class="clip" tabindex="-1" ref=${heading}>${title}</h1>
    ${children}
  </header>`;
}

export function Shell({ children }) {
  const go = (to) => () => navigate(to);
  useKeys("Everywhere", [
    ["Mod+k", "Palette: go, do, search, ask", () => (paletteOpen.value = !paletteOpen.value)],
    ["?", "Keys", () => (helpOpen.value = true)],
    ["/", "Search", go("/search")],
    ["g w", "Cameras", go("/")],
    ["g i", "Incidents", go("/incidents")],
    ["g s", "Search", go("/search")],
    ["g a", "Ask", go("/ask")],
    ["g y", "System", go("/system")],
    ["g n", "Attach a camera", go("/attach")],
  ]);
  const error = phase.value;
  const alone = route.value.page === "login";
  if (alone) return html`<main id="main">${children}</main><${Toasts} />`;
  return html`
    <a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); document.getElementById("main").focus(); }}>Skip to the content</a>
    <div class=${kiosk.value ? "app kiosk" : "app"}>
      <${Side} />
      <main class="main" id="main" tabindex="-1">
        ${error instanceof Error
          ? html`<${Top} title="NVILA Streamer" /><${Failed} error=${error} retry=${start} title=${error.status === 403 ? "This page may not be shown here" : "The service does not answer"} />`
          : html`${children}`}
      </main>
      <${Bottom} />
    </div>
    <div class="notices" role="status"><${Lost} /><${Missing} /></div>
    <${Palette} /><${Help} /><${Toasts} />
    <div class="aloud" role="alert" aria-live="assertive">${announcement.value}</div>`;
}
