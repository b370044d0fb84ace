/** The wall alone, in full screen. */
import { effect, signal } from "@preact/signals-core";

export const kiosk = signal(false);

export function startKiosk() {
  effect(() => {
    const wanted = kiosk.value;
    if (wanted && !document.fullscreenElement) document.documentElement.requestFullscreen?.().catch(() => {});
    if (!wanted && document.fullscreenElement) document.exitFullscreen().catch(() => {});
  });
  document.addEventListener("fullscreenchange", () => {
    if (!document.fullscreenElement) kiosk.value = false;
  });
}
