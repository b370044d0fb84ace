/** Light, dark, or as the system has it; remembered by the browser. */
import { effect, signal } from "@preact/signals-core";

const stored = () => {
  try {
    return localStorage.getItem("theme");
  } catch {
    return null;
  }
};

/** "light", "dark", or null: as the system has it. */
export const theme = signal(stored());

export const isDark = () =>
  theme.value ? theme.value === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;

export function toggleTheme() {
  theme.value = isDark() ? "light" : "dark";
}

export function startTheme() {
  effect(() => {
    document.documentElement.style.colorScheme = theme.value ?? "";
    try {
      if (theme.value) localStorage.setItem("theme", theme.value);
      else localStorage.removeItem("theme");
    } catch {
      // without storage it lasts until the page is closed
    }
  });
}
