/** A small line of the last numbers. */
import { html } from "./html.js";

/** The path of a line through `values`, in a box of `width` x `height`. */
export function linePath(values, width, height) {
  if (values.length < 2) return "";
  const low = Math.min(...values), high = Math.max(...values);
  const step = width / (values.length - 1);
  const y = (value) => (high === low ? height - 1.5 : height - 1.5 - ((value - low) / (high - low)) * (height - 3));
  return values.map((value, index) => `${index ? "L" : "M"}${(index * step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
}

export function Sparkline({ values, label }) {
  const flat = values.every((value) => value === values[0]);
  return html`<svg class=${flat ? "spark flat" : "spark"} viewBox="0 0 68 20" preserveAspectRatio="none" role="img" aria-label=${label}>
    <title>${label}</title><path d=${linePath(values, 68, 20)} /></svg>`;
}
