/** Keys: which does what, and the list of them for `?`. */
import { useLayoutEffect, useRef } from "preact/hooks";
import { signal } from "@preact/signals-core";

/** Groups of keys that work now: `{title, keys: [[key, label, run], ...]}`. */
export const groups = signal([]);

/** The name of a key press: "j", "?", "Escape", "Mod+k". */
export function keyName(event) {
  const mod = event.ctrlKey || event.metaKey;
  if (event.altKey) return null;
  const key = event.key?.length === 1 && mod ? event.key.toLowerCase() : event.key;
  return mod ? `Mod+${key}` : key;
}

/** How a key is written on screen. */
export function keyLabel(key, mac = false) {
  const names = { Escape: "Esc", ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", " ": "Space" };
  return key.split(" ").map((part) =>
    part.split("+").map((each) => (each === "Mod" ? (mac ? "⌘" : "Ctrl") : names[each] ?? (each.length === 1 ? each.toUpperCase() : each))).join(" "),
  ).join(" then ");
}

const isTyping = (target) =>
  target instanceof Element && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));

let prefix = null, prefixTimer;

/** What a key press means among `given` groups, the newest first; `g w` are two presses. */
export function find(given, name, before = null) {
  for (const group of [...given].reverse()) {
    for (const [key, , run] of group.keys) {
      if (key === (before ? `${before} ${name}` : name)) return run;
    }
  }
  return null;
}

export function startKeys() {
  addEventListener("keydown", (event) => {
    const name = keyName(event);
    if (!name || event.isComposing || event.defaultPrevented) return;
    const typing = isTyping(event.target);
    if (typing && !name.startsWith("Mod+")) return;
    if (document.querySelector("dialog[open]") && name !== "Mod+k") return;
    const run = find(groups.value, name, prefix);
    if (run && !(name === "Enter" && event.target.closest?.("a,button,summary"))) {
      event.preventDefault();
      prefix = null;
      run(event);
      return;
    }
    clearTimeout(prefixTimer);
    const begins = !prefix && groups.value.some((group) => group.keys.some(([key]) => key.startsWith(`${name} `)));
    prefix = begins ? name : null;
    prefixTimer = setTimeout(() => (prefix = null), 1500);
  });
}

/** Let keys work while a component is shown. */
export function useKeys(title, keys) {
  const latest = useRef(keys);
  latest.current = keys;
  useLayoutEffect(() => {
    const group = {
      title,
      keys: keys.map(([key, label], index) => [key, label, (event) => latest.current[index]?.[2](event)]),
    };
    groups.value = [...groups.value, group];
    return () => (groups.value = groups.value.filter((each) => each !== group));
  }, [title, keys.length]);
}
