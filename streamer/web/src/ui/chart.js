/** A chart of numbers over time, by uPlot. */
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import { isDark, theme } from "../theme.js";
import { clockTime } from "../time.js";
import { html } from "./html.js";

// The style of the charts is needed on one page only; it is there before the first of them, so that none moves.
await new Promise((arrived) => {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL("../../vendor/uplot.css", import.meta.url).href;
  link.onload = link.onerror = arrived;
  document.head.append(link);
});

const color = (name) => {
  const probe = document.createElement("i");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
};

// Steps of an axis of whole numbers.
const WHOLE = Array.from({ length: 16 }, (_, power) => [1, 2, 5].map((step) => step * 10 ** power)).flat();

// What the axis of times shows before there is a line.
const lastMinute = (until = Date.now() / 1000) => [until - 60, until];

/** `times` in seconds; `lines`: [{label, color, values}]; `format` writes a value; `whole`: it has no fraction. */
export function Chart({ title, times, lines, format, whole = false, height = 140 }) {
  const box = useRef(null);
  const plot = useRef(null);
  const dark = theme.value === null ? isDark() : theme.value === "dark";
  const data = [times, ...lines.map((line) => line.values)];
  useEffect(() => {
    const place = box.current;
    const axis = { stroke: color("soft"), grid: { stroke: color("line"), width: 1 }, ticks: { show: false }, font: "11px Inter, system-ui, sans-serif" };
    const made = new uPlot({
      width: Math.max(200, place.clientWidth),
      height,
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false } },
      padding: [10, 26, 0, 0],
      scales: {
        x: { range: ({ data: [known = []] = [] }, low, high) => (known.length > 1 ? [low, high] : lastMinute(known[0])) },
        y: { range: (_, low, high) => [0, high > 0 ? high * 1.15 : 1] },
      },
      axes: [{ ...axis, space: 90, size: 26, values: (_, values) => values.map((value) => clockTime(value * 1000)) }, { ...axis, size: 52, space: 28, ...(whole ? { incrs: WHOLE } : {}), values: (_, values) => values.map(format) }],
      series: [{}, ...lines.map((line) => ({ label: line.label, stroke: color(line.color), width: 1.5, points: { show: false }, spanGaps: true }))],
    }, data, place);
    plot.current = made;
    const fit = new ResizeObserver(() => made.setSize({ width: Math.max(200, place.clientWidth), height }));
    fit.observe(place);
    return () => {
      fit.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [dark, lines.length, height]);
  useEffect(() => plot.current?.setData(data), [times, lines]);
  const newest = (line) => line.values.findLast((value) => value !== null && value !== undefined);
  return html`<figure class="panel chart">
    <figcaption class="row wrap"><h3 class="grow">${title}</h3>
      ${lines.map((line) => html`<span key=${line.label} class="row small soft"><span class=${`key ${line.color}`} />${line.label} <strong class="number">${newest(line) === undefined ? "–" : format(newest(line))}</strong></span>`)}</figcaption>
    <div ref=${box} style=${{ height: `${height}px` }} aria-hidden="true" />
  </figure>`;
}
