/** The address is the state of the page: routes, links and parameters. */
import { computed, signal } from "@preact/signals-core";

export const ROUTES = [
  ["/", "wall"],
  ["/streams/:name", "stream"],
  ["/incidents", "incidents"],
  ["/incidents/:id", "incidents"],
  ["/search", "search"],
  ["/ask", "ask"],
  ["/attach", "attach"],
  ["/system", "system"],
  ["/login", "login"],
];

/** The page at a path, and what its address names: `{page, params}`. */
export function match(path) {
  const given = path.replace(/(.)\/+$/, "$1").split("/");
  for (const [pattern, page] of ROUTES) {
    const parts = pattern.split("/");
    if (parts.length !== given.length) continue;
    const params = {};
    const fits = parts.every((part, index) => {
      if (!part.startsWith(":")) return part === given[index];
      try {
        params[part.slice(1)] = decodeURIComponent(given[index]);
      } catch {
        return false;
      }
      return given[index] !== "";
    });
    if (fits) return { page, params };
  }
  return { page: "missing", params: {} };
}

const here = () => (typeof location === "undefined" ? "/" : location.pathname + location.search);

/** Path and parameters of the address. */
export const address = signal(here());

export const route = computed(() => match(address.value.split("?")[0]));
export const query = computed(() => new URLSearchParams(address.value.split("?")[1] ?? ""));

/** Go to an address of this page. */
export function navigate(to, { replace = false } = {}) {
  if (to === address.value) return;
  const before = address.value.split("?")[0];
  history[replace ? "replaceState" : "pushState"](null, "", to);
  address.value = here();
  if (before !== address.value.split("?")[0]) window.scrollTo(0, 0);
}

/** Change parameters of the address; null or "" removes one. */
export function setQuery(changes, { replace = true } = {}) {
  const params = new URLSearchParams(query.value);
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === undefined || value === "") params.delete(name);
    else params.set(name, value);
  }
  const text = params.toString();
  navigate(address.value.split("?")[0] + (text ? `?${text}` : ""), { replace });
}

/** The address of a stream, optionally with parameters. */
export function streamPath(name, params) {
  const text = params ? new URLSearchParams(params).toString() : "";
  return `/streams/${encodeURIComponent(name)}${text ? `?${text}` : ""}`;
}

/** Follow links within the page without loading it again. */
export function startRouter() {
  addEventListener("popstate", () => (address.value = here()));
  document.addEventListener("click", (event) => {
    if (event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    const link = event.target.closest?.("a[href]");
    if (!link || link.target || link.origin !== location.origin || link.hasAttribute("download")) return;
    if (match(link.pathname).page === "missing") return;
    event.preventDefault();
    navigate(link.pathname + link.search);
  });
}
