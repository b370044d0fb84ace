/** Times: the clock of the service, ages, and ranges as people read them. */
import { signal } from "@preact/signals-core";

let offset = 0;

/** Milliseconds since the epoch, by the clock of the service. */
export const now = signal(Date.now());

/** Take over the clock of the service from a moment that it named. */
export function setServerTime(rfc3339) {
  const time = Date.parse(rfc3339);
  if (Number.isFinite(time)) {
    offset = time - Date.now();
    tick();
  }
}

/** Milliseconds since the epoch, this moment. */
export function serverNow() {
  return Date.now() + offset;
}

/** Renew `now`; main.js calls it each second. */
export function tick() {
  now.value = serverNow();
}

/** Seconds between a moment and `at`, never negative; null for no moment. */
export function secondsSince(rfc3339, at) {
  const time = typeof rfc3339 === "number" ? rfc3339 : Date.parse(rfc3339 ?? "");
  return Number.isFinite(time) ? Math.max(0, (at - time) / 1000) : null;
}

/** "now", "3 s ago", "12 min ago", "5 h ago", "3 d ago". */
export function ago(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 1.5) return "now";
  return `${duration(seconds)} ago`;
}

/** "3 s", "12 min", "5 h", "3 d". */
export function duration(seconds) {
  if (seconds < 59.5) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 59.5 * 60) return `${Math.round(seconds / 60)} min`;
  if (seconds < 47.5 * 3600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

const two = (number) => String(number).padStart(2, "0");

/** "14:02:09" in the viewer's time zone. */
export function clockTime(time, { seconds = true } = {}) {
  const date = new Date(time);
  const short = `${two(date.getHours())}:${two(date.getMinutes())}`;
  return seconds ? `${short}:${two(date.getSeconds())}` : short;
}

const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/** "14:02:09" today, "25 Nov 14:02:09" on another day. */
export function moment(time, at = serverNow(), options) {
  const date = new Date(time);
  const clock = clockTime(time, options);
  if (date.toDateString() === new Date(at).toDateString()) return clock;
  const year = date.getFullYear() === new Date(at).getFullYear() ? "" : ` ${date.getFullYear()}`;
  return `${date.getDate()} ${MONTHS[date.getMonth()]}${year} ${clock}`;
}

/** "14:02:09 – 14:03:30". */
export function rangeText(start, end, at = serverNow()) {
  const sameDay = new Date(start).toDateString() === new Date(end).toDateString();
  return `${moment(start, at)} – ${sameDay ? clockTime(end) : moment(end, at)}`;
}

/** RFC 3339 with milliseconds. */
export function rfc3339(time) {
  return new Date(time).toISOString();
}

const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400];

/** Round moments in [start, end], at most `count`: the ticks of a time axis. */
export function timeTicks(start, end, count = 8) {
  const seconds = (end - start) / 1000;
  const step = (STEPS.find((each) => seconds / each <= count) ?? Math.ceil(seconds / count / 86400) * 86400) * 1000;
  const zone = new Date(start).getTimezoneOffset() * 60000;
  const ticks = [];
  for (let time = Math.ceil((start - zone) / step) * step + zone; time <= end; time += step) ticks.push(time);
  return ticks;
}
