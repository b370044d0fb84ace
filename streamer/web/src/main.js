/** Start the page. */
import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import "@preact/signals";
import { effect } from "@preact/signals-core";
import { startKeys } from "./keys.js";
import { startRouter, route } from "./router.js";
import { phase } from "./store.js";
import { startTheme } from "./theme.js";
import { tick } from "./time.js";
import { html } from "./ui/html.js";
import { startKiosk } from "./ui/kiosk.js";
import { Shell, Top } from "./ui/shell.js";
import { Failed, Skeleton } from "./ui/states.js";

/** A page that is loaded when it is opened, or before: `Page.load()`. */
function lazily(title, load) {
  let Page = null;
  function Lazy(given) {
    const [error, setError] = useState(null);
    const [, renew] = useState(0);
    useEffect(() => {
      if (!Page) Lazy.load().then(() => renew((number) => number + 1), setError);
    }, []);
    if (Page) return html`<${Page} ...${given} />`;
    if (error) return html`<${Top} title=${title} /><${Failed} error=${{ message: "A part of the page could not be loaded. The service may have been upgraded." }} retry=${() => location.reload()} />`;
    return html`<${Top} title=${title} /><div class="panel body" aria-busy="true"><${Skeleton} lines=${4} /></div>`;
  }
  Lazy.load = () => load().then((module) => { Page = module.default; });
  return Lazy;
}

const PAGES = {
  wall: lazily("Cameras", () => import("./pages/wall.js")),
  stream: lazily("Camera", () => import("./pages/stream.js")),
  incidents: lazily("Incidents", () => import("./pages/incidents.js")),
  search: lazily("Search", () => import("./pages/search.js")),
  ask: lazily("Ask", () => import("./pages/ask.js")),
  attach: lazily("Attach a camera", () => import("./pages/attach.js")),
  system: lazily("System", () => import("./pages/system.js")),
  login: lazily("Sign in", () => import("./pages/login.js")),
  missing: lazily("Not found", () => import("./pages/missing.js")),
};

const AFTERWARDS = 3000;

// All but the large one, so that they open at once, and also when the service is away. The first page goes before.
function loadOthers() {
  const end = effect(() => {
    if (phase.value !== "ready") return;
    setTimeout(() => Promise.allSettled(Object.values(PAGES).map((page) => page === PAGES.system || page.load())), AFTERWARDS);
    queueMicrotask(() => end());
  });
}

function App() {
  const { page, params } = route.value;
  const Page = PAGES[page] ?? PAGES.missing;
  return html`<${Shell}><${Page} key=${page} ...${params} /><//>`;
}

startTheme();
startKiosk();
startRouter();
startKeys();
setInterval(tick, 1000);
// what the first page needs is on its way already: the document names it
(PAGES[route.value.page] ?? PAGES.missing).load().catch(() => {}).then(() => {
  render(html`<${App} />`, document.getElementById("app"));
  loadOthers();
});
