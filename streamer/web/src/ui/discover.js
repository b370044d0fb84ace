/** Cameras of the network: a search for them, and what was found. */
import { useEffect, useRef, useState } from "preact/hooks";
import { api } from "../api.js";
import { plural } from "../format.js";
import { Icon } from "../icons.js";
import { streamPath } from "../router.js";
import { html } from "./html.js";
import { Empty, Problem, Sentence, Spinner } from "./states.js";

/** What is known of a stream of a camera, in one line. */
export function streamFacts({ codec, width, height, fps }) {
  return [
    codec && ({ h264: "H.264", hevc: "H.265", h265: "H.265" }[codec] ?? codec.toUpperCase()),
    width && height && `${width} × ${height}`,
    fps && `${fps} frames/s`,
  ].filter(Boolean).join(" · ");
}

/** The address of a stream with the user and the password that the search was made with. */
export function withUser(url, user, password) {
  if (!user) return url;
  return url.replace(/^([a-z]+:\/\/)(?:[^/@]*@)?/i, `$1${encodeURIComponent(user)}${password ? `:${encodeURIComponent(password)}` : ""}@`);
}

/** A name for a stream of a camera: that of the camera, and of the stream if there are several. */
export function cameraName(camera, stream) {
  const own = camera.name || camera.model || camera.address;
  const full = camera.streams.length > 1 ? `${own} ${stream.name}` : own;
  return full.replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "").replace(/-+$/, "").slice(0, 64);
}

function Found({ camera, choose }) {
  const about = [camera.manufacturer, camera.model, camera.location].filter(Boolean).join(" · ");
  return html`<section class="panel found">
    <header><${Icon} name="camera" size=${17} /><h2 class="grow clip">${camera.name || camera.address}</h2><span class="soft small number">${camera.address}</span></header>
    <div class="body">
      ${about && html`<p class="soft small">${about}</p>`}
      ${camera.attached.length > 0 && html`<p class="row wrap small"><span class="soft">Attached as</span>${camera.attached.map((name) => html`<a key=${name} class="tag" href=${streamPath(name)}>${name}</a>`)}
        ${camera.moved.length > 0 && html`<span class="warn">It has moved to another address: attach it again.</span>`}</p>`}
      ${camera.error && html`<p class=${camera.streams.length ? "warn small" : "warn"}><${Sentence} text=${camera.error.message} /></p>`}
      ${camera.streams.length > 0 && html`<ul class="rows">${camera.streams.map((stream) => html`<li key=${stream.url} class="row">
        <span class="grow stack" style=${{ gap: 0 }}><strong class="clip">${stream.name}</strong><span class="soft small clip" title=${stream.url}>${streamFacts(stream) || stream.url}</span></span>
        <button class="button" aria-label=${`Attach ${stream.name} of ${camera.name || camera.address}`} onClick=${() => choose(camera, stream)}>Attach</button></li>`)}</ul>`}
    </div>
  </section>`;
}

/** The search. `choose({url, name, endpoint})` is called with the stream to attach. */
export function Discover({ choose }) {
  const [address, setAddress] = useState("");
  const [user, setUser] = useState("");
  const [password, setPassword] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(null);
  const [found, setFound] = useState(null);
  const stop = useRef(null);
  useEffect(() => () => stop.current?.abort(), []);
  const search = async (event) => {
    event.preventDefault();
    stop.current?.abort();
    stop.current = new AbortController();
    setBusy(true);
    setError(null);
    setFound(null);
    try {
      const wanted = { address: address.trim() || undefined, user: user || undefined, password: password || undefined };
      setFound(await api.discover(wanted, { signal: stop.current.signal }));
    } catch (problem) {
      if (problem.name !== "AbortError") setError(problem);
    }
    setBusy(false);
  };
  const take = (camera, stream) => choose({ url: withUser(stream.url, user, password), name: cameraName(camera, stream), endpoint: camera.endpoint_reference });
  const field = (label, value, set, more) => html`<label class="label grow">${label}<input class="field" spellcheck="false" autocapitalize="off" autocomplete="off" value=${value} onInput=${(event) => set(event.target.value)} disabled=${busy} ...${more} /></label>`;
  return html`
    <form class="panel body" onSubmit=${search}>
      ${field("Host or network", address, setAddress, { maxlength: 255, placeholder: "The networks of the server, or 192.168.1.0/24" })}
      <div class="row wrap two">
        ${field("User of the cameras", user, setUser, { maxlength: 256, placeholder: "admin" })}
        ${field("Password", password, setPassword, { type: "password", maxlength: 256, autocomplete: "new-password" })}
      </div>
      <${Problem} error=${error} />
      <div class="row"><button class="button primary" disabled=${busy}>${busy ? "Searching …" : found ? "Search again" : "Search"}</button>
        ${busy && html`<button type="button" class="button plain" onClick=${() => stop.current?.abort()}>Stop</button><span class="row soft small"><${Spinner} />up to half a minute</span>`}</div>
      ${!found && !busy && html`<p class="soft small">Cameras that speak ONVIF are asked, in private networks only. The password is not stored.</p>`}
    </form>
    <div class="stack" style=${{ gap: "14px" }} aria-live="polite">
      ${found && !found.cameras.length && html`<section class="panel"><${Empty} small icon="search" title="No camera answered" text=${found.hosts === null ? "Name a host or a network: some networks carry no multicast." : `${plural(found.hosts, "address", "addresses")} asked. Is ONVIF switched on in the camera?`} /></section>`}
      ${found?.cameras.map((camera) => html`<${Found} key=${camera.endpoint_reference ?? camera.address} camera=${camera} choose=${take} />`)}
    </div>`;
}
