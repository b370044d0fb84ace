/** Start the page. */
import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import "@preact/signals";
import { startKeys } from "./keys.js";
import { startRouter, route } from "./router.js";
import { start } from "./store.js";
import { startTheme } from "./theme.js";
import { tick } from "./time.js";
import { html } from "./ui/html.js";
import { startKiosk } from "./ui/kiosk.js";
import { Shell, Top } from "./ui/shell.js";
import { Failed, Skeleton } from "./ui/states.js";
import Ask from "./pages/ask.js";
import Attach from "./pages/attach.js";
import Incidents from "./pages/incidents.js";
import Login from "./pages/login.js";
import Missing from "./pages/missing.js";
import Search from "./pages/search.js";
import StreamPage from "./pages/stream.js";
import Wall from "./pages/wall.js";

/** A page that is loaded when it is opened. */
function lazily(title, load) {
  let Page = null;
  return function Lazy(given) {
    const [error, setError] = useState(null);
    const [, renew] = useState(0);
    const attempt = () => {
      setError(null);
      load().then((module) => { Page = module.default; renew((number) => number + 1); }, setError);
    };
    useEffect(() => {
      if (!Page) attempt();
    }, []);
    if (Page) return html`<${Page} ...${given} />`;
    if (error) return html`<${Top} title=${title} /><${Failed} error=${{ message: "A part of the page could not be loaded. The service may have been upgraded." }} retry=${() => location.reload()} />`;
    return html`<${Top} title=${title} /><div class="panel body" aria-busy="true"><${Skeleton} lines=${4} /></div>`;
  };
}

const PAGES = {
  wall: Wall,
  stream: StreamPage,
  incidents: Incidents,
  search: Search,
  ask: Ask,
  attach: Attach,
  system: lazily("System", () => import("./pages/system.js")),
  login: Login,
  missing: Missing,
};

function App() {
  const { page, params } = route.value;
  const Page = PAGES[page] ?? Missing;
  return html`<${Shell}><${Page} key=${page} ...${params} /><//>`;
}

startTheme();
startKiosk();
startRouter();
startKeys();
setInterval(tick, 1000);
render(html`<${App} />`, document.getElementById("app"));
if (route.value.page !== "login") start();
