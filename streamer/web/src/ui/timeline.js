/** A timeline of captions, incidents, gaps and reconnects, on which dragging selects a range. */
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { useSignal } from "@preact/signals";
import { api } from "../api.js";
import { saying } from "../format.js";
import { camera, generation, incidents as known } from "../store.js";
import { clockTime, duration, moment, rangeText, rfc3339, serverNow, timeTicks } from "../time.js";
import { html } from "./html.js";
import { Sentence } from "./states.js";

export const SPANS = [[900, "15 min"], [3600, "1 h"], [21600, "6 h"], [86400, "24 h"]];

/** Where a moment is in [start, end], from 0 to 1 and beyond. */
export function place(time, start, end) {
  return (time - start) / (end - start);
}

/** The range between two moments, at least a second long and within [start, end]. */
export function selection(a, b, start, end) {
  const from = Math.max(start, Math.min(a, b)), to = Math.min(end, Math.max(a, b));
  return to - from >= 1000 ? { since: Math.floor(from / 1000) * 1000, until: Math.ceil(to / 1000) * 1000 } : null;
}

/** The result whose frames are nearest to a moment, at most `most` milliseconds away. */
export function nearest(results, time, most) {
  let best = null, distance = most;
  for (const result of results) {
    const from = Date.parse(result.start ?? result.created_at), to = Date.parse(result.end ?? result.created_at);
    const away = time < from ? from - time : time > to ? time - to : 0;
    if (away < distance || (away === 0 && distance === 0 && best === null)) [best, distance] = [result, away];
    if (away === 0) break;
  }
  return best;
}

/** Pairs of a lost and a found connection, from changes of state in order of time. */
export function outages(changes, start, end) {
  const found = [];
  let from = null;
  for (const { time, state, previous } of changes) {
    const at = Date.parse(time);
    const down = (word) => word === "reconnecting" || word === "failed";
    if (down(state) && from === null) from = at;
    else if (!down(state) && (from !== null || down(previous))) {
      found.push([from ?? start, at]);
      from = null;
    }
  }
  if (from !== null) found.push([from, end]);
  return found.filter(([a, b]) => b > start && a < end);
}

// Changes of state since a moment: the events that are kept, read until no more come.
async function pastChanges(id, since, signal) {
  const params = new URLSearchParams({ streams: id, types: "stream.state_changed", after: `${Math.round(since)}-0` });
  const stop = new AbortController();
  signal.addEventListener("abort", () => stop.abort());
  let timer = setTimeout(() => stop.abort(), 3000), text = "";
  try {
    const response = await fetch(`/v1/events?${params}`, { signal: stop.signal });
    if (!response.ok) return [];
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      text += value;
      clearTimeout(timer);
      timer = setTimeout(() => stop.abort(), 400);
    }
  } catch {
    // ended here, or by the service
  }
  clearTimeout(timer);
  return [...text.matchAll(/^data: (\{.*"stream\.state_changed".*\})$/gm)].map(([, data]) => JSON.parse(data)).map((event) => ({ time: event.time, ...event.data }));
}

/** What the timeline of a stream shows: results, incidents, gaps and changes between two moments. */
export function usePast(id, start, end, following) {
  const past = useSignal({ results: [], incidents: [], gaps: [], changes: [], loading: true, error: null });
  const attempt = useSignal(0);
  const since = rfc3339(start);
  const key = `${attempt.value} ${id} ${Math.round(start / 60000)} ${Math.round(end / 60000)} ${generation.value}`;
  useEffect(() => {
    const stop = new AbortController();
    const range = following ? { since } : { since, until: rfc3339(end) };
    const options = { signal: stop.signal };
    past.value = { ...past.peek(), loading: true };
    Promise.all([
      api.results({ stream: id, limit: 400, ...range }, options),
      api.incidents({ stream: id, limit: 100, since }, options),
      api.frames(id, { since, until: rfc3339(Math.min(end, serverNow())), limit: 2 }, options).catch(() => ({ gaps: [] })),
    ]).then(
      ([results, incidents, frames]) => stop.signal.aborted || (past.value = { ...past.peek(), results: results.results, incidents: incidents.incidents, gaps: frames.gaps, loading: false, error: null }),
      (error) => stop.signal.aborted || (past.value = { ...past.peek(), loading: false, error }),
    );
    pastChanges(id, start, stop.signal).then((changes) => stop.signal.aborted || (past.value = { ...past.peek(), changes }));
    return () => stop.abort();
  }, [key]);
  const live = camera(id);
  const results = useMemo(() => {
    if (!following) return past.value.results;
    const ids = new Set(past.value.results.map((result) => result.id));
    return [...live.results.value.filter((result) => !ids.has(result.id) && Date.parse(result.created_at) >= start), ...past.value.results];
  }, [past.value.results, live.results.value, following, Math.round(start / 1000)]);
  const incidents = past.value.incidents.map((incident) => known.value.get(incident.id) ?? incident);
  for (const incident of known.value.values()) {
    if (incident.stream_id === id && !incidents.some((each) => each.id === incident.id)) incidents.push(incident);
  }
  const lately = new Set(past.value.changes.map((change) => change.time));
  const changes = [...past.value.changes, ...live.changes.value.filter((change) => !lately.has(change.time))];
  return { ...past.value, results, incidents, changes, retry: () => attempt.value++ };
}

/** The timeline. `range` is {since, until} in milliseconds, or null. */
export function Timeline({ start, end, past, range, selected, onRange, onSelect }) {
  const box = useRef(null);
  const [drag, setShownDrag] = useState(null);
  const dragged = useRef(null); // events may come faster than the page is drawn
  const setDrag = (range) => {
    dragged.current = range;
    setShownDrag(range);
  };
  const [hover, setHover] = useState(null);
  const [cursor, setCursor] = useState(null);
  const left = (time) => `${(100 * place(time, start, end)).toFixed(3)}%`;
  const width = (from, to) => `${Math.max(0.15, 100 * (place(to, start, end) - place(from, start, end))).toFixed(3)}%`;
  const timeAt = (event) => {
    const rect = box.current.getBoundingClientRect();
    return start + Math.max(0, Math.min(1, (event.clientX - rect.left) / rect.width)) * (end - start);
  };
  const reach = (end - start) / 60;
  const onPointerDown = (event) => {
    if (event.button) return;
    box.current.setPointerCapture(event.pointerId);
    const time = timeAt(event);
    setDrag([time, time]);
  };
  const onPointerMove = (event) => {
    const time = timeAt(event);
    setHover(time);
    if (dragged.current) setDrag([dragged.current[0], time]);
  };
  const onPointerUp = (event) => {
    if (!dragged.current) return;
    const a = dragged.current[0], b = timeAt(event);
    setDrag(null);
    if (Math.abs(b - a) < (end - start) / 150) {
      const result = nearest(past.results, a, reach);
      if (result) onSelect(result);
      else onRange(null);
    } else onRange(selection(a, b, start, end));
  };
  const onKeyDown = (event) => {
    const step = (end - start) / 60;
    const by = { ArrowLeft: -step, ArrowRight: step, PageUp: -10 * step, PageDown: 10 * step }[event.key];
    const at = cursor ?? end;
    if (by) {
      const next = Math.max(start, Math.min(end, at + by));
      if (event.shiftKey) {
        const fixed = range ? (Math.abs(range.until - at) < Math.abs(range.since - at) ? range.since : range.until) : at;
        onRange(selection(fixed, next, start, end) ?? range);
      }
      setCursor(next);
    } else if (event.key === "Enter") {
      const result = nearest(past.results, at, reach);
      if (result) onSelect(result);
    } else if (event.key === "Escape") {
      onRange(null);
      setCursor(null);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  };
  const chosen = drag ? selection(drag[0], drag[1], start, end) : range;
  const ticks = useMemo(() => timeTicks(start, end, 8).filter((time) => Math.abs(place(time, start, end) - 0.5) < 0.45), [Math.round(start / 1000), Math.round(end / 1000)]);
  const under = hover !== null && !drag ? nearest(past.results, hover, reach) : null;
  const captions = [], alerts = [], failures = [];
  for (const result of past.results) {
    const at = (1000 * place(Date.parse(result.end ?? result.created_at), start, end)).toFixed(1);
    if (at < 0 || at > 1000) continue;
    (result.kind === "error" ? failures : result.kind === "alert" ? alerts : captions).push(`M${at} 0V10`);
  }
  return html`<div class="timeline">
    <div class="track" ref=${box} tabindex="0" role="slider" aria-label="Timeline: arrow keys move, with Shift they select a range, Enter shows the nearest caption"
      aria-valuemin=${Math.round(start / 1000)} aria-valuemax=${Math.round(end / 1000)} aria-valuenow=${Math.round((cursor ?? end) / 1000)}
      aria-valuetext=${chosen ? rangeText(chosen.since, chosen.until) : moment(cursor ?? end)}
      onPointerDown=${onPointerDown} onPointerMove=${onPointerMove} onPointerUp=${onPointerUp} onPointerCancel=${() => setDrag(null)} onPointerLeave=${() => setHover(null)} onKeyDown=${onKeyDown}>
      ${past.gaps.map((gap) => html`<span key=${gap.start} class="gap" style=${{ left: left(Date.parse(gap.start)), width: width(Date.parse(gap.start), Date.parse(gap.end)) }} title=${`No frames: ${rangeText(gap.start, gap.end)}`} />`)}
      ${outages(past.changes, start, end).map(([from, to]) => html`<span key=${from} class="outage" style=${{ left: left(from), width: width(from, to) }} title=${`Connection lost: ${rangeText(from, to)}`} />`)}
      ${past.incidents.map((incident) => {
        const from = Date.parse(incident.opened_at), to = Date.parse(incident.resolved_at ?? rfc3339(end));
        return to < start || from > end ? null : html`<span key=${incident.id} class=${`bar ${incident.severity}`} style=${{ left: left(Math.max(from, start)), width: width(Math.max(from, start), Math.min(to, end)) }} title=${incident.title} />`;
      })}
      <svg class="ticks captions" viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true"><path d=${captions.join("")} /></svg>
      <svg class="ticks alerts" viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true"><path d=${alerts.join("")} /></svg>
      <svg class="ticks failures" viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true"><path d=${failures.join("")} /></svg>
      ${selected?.end && html`<span class="cursor chosen" style=${{ left: left(Date.parse(selected.end)) }} />`}
      ${cursor !== null && html`<span class="cursor" style=${{ left: left(cursor) }} />`}
      ${chosen && html`<span class="chosen-range" style=${{ left: left(chosen.since), width: width(chosen.since, chosen.until) }} />`}
      ${hover !== null && !drag && html`<span class="cursor hover" style=${{ left: left(hover) }} />`}
    </div>
    <div class="scale number" aria-hidden="true">${ticks.map((time) => html`<span key=${time} style=${{ left: left(time) }}>${clockTime(time, { seconds: end - start < 300_000 })}</span>`)}</div>
    <p class="under soft small clip">${drag && chosen
      ? html`${rangeText(chosen.since, chosen.until)} · ${duration((chosen.until - chosen.since) / 1000)}`
      : under
        ? html`<span class="number">${moment(under.end ?? under.created_at)}</span> ${saying(under)}`
        : past.loading ? "Loading …" : past.error ? html`<${Sentence} text=${past.error.message} />` : "Drag to select a range; click to see what the model saw."}</p>
  </div>`;
}
