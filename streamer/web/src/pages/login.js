/** Sign in with a key. */
import { useEffect, useState } from "preact/hooks";
import { api } from "../api.js";
import { navigate, query } from "../router.js";
import { session, start } from "../store.js";
import { html } from "../ui/html.js";
import { Problem } from "../ui/states.js";

const base = new URL("../..", import.meta.url).pathname.replace(/\/$/, "");

/** Where to go after signing in: an address of this page only. */
export function safeNext(next) {
  return next && /^\/(?![/\\])/.test(next) && !next.startsWith("/login") ? next : "/";
}

export default function Login() {
  const [key, setKey] = useState("");
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const next = safeNext(query.value.get("next"));
  useEffect(() => {
    document.title = "Sign in · NVILA Streamer";
  }, []);
  const signIn = async (event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      session.value = await api.signIn(event.target.elements.key.value.trim());
      navigate(next, { replace: true });
      start();
    } catch (problem) {
      setError(problem);
      setBusy(false);
    }
  };
  return html`<div class="login"><form class="panel" onSubmit=${signIn}>
    <img src=${`${base}/icon.svg`} width="40" height="40" alt="" />
    <h1>Sign in</h1>
    <p class="soft">This installation asks for a key. Make one on its machine with <code>streamer keys add NAME</code>.</p>
    <label class="label">Key
      <input class="field" name="key" type="password" autocomplete="current-password" required autofocus value=${key} onInput=${(event) => setKey(event.target.value)} /></label>
    <${Problem} error=${error} />
    <button class="button primary" disabled=${busy}>${busy ? "Signing in …" : "Sign in"}</button>
  </form></div>`;
}
