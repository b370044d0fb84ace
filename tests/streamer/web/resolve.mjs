// Let Node find the modules that the page's import map names.
import { register } from "node:module";

const vendor = new URL("../../../streamer/web/vendor/", import.meta.url).href;
const names = {
  preact: "preact.mjs",
  "preact/hooks": "hooks.mjs",
  htm: "htm.mjs",
  "@preact/signals": "signals.mjs",
  "@preact/signals-core": "signals-core.mjs",
};
const hooks = `
const names = ${JSON.stringify(names)};
export function resolve(name, context, next) {
  return names[name] ? { url: ${JSON.stringify(vendor)} + names[name], shortCircuit: true } : next(name, context);
}
export async function load(url, context, next) {
  return next(url, url.includes("/streamer/web/") ? { ...context, format: "module" } : context);
}`;
register(`data:text/javascript,${encodeURIComponent(hooks)}`);
