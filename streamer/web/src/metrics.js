/** Prometheus's text format, and what the system page reads from it. */

/** Samples by name: `{name: [{labels, value}, ...]}`. */
export function parseMetrics(text) {
  const found = {};
  for (const line of text.split("\n")) {
    const parts = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!parts) continue;
    const labels = {};
    for (const [, name, value] of (parts[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[name] = value.replace(/\\(.)/g, (_, letter) => (letter === "n" ? "\n" : letter));
    }
    (found[parts[1]] ??= []).push({ labels, value: Number(parts[3]) });
  }
  return found;
}

/** Group samples by a label, and add the values of each group: `{label: value}`. */
export function byLabel(samples, label) {
  const found = {};
  for (const sample of samples ?? []) found[sample.labels[label]] = (found[sample.labels[label]] ?? 0) + sample.value;
  return found;
}

/** All values added; null if there are none. */
export function total(samples) {
  return samples?.length ? samples.reduce((sum, sample) => sum + sample.value, 0) : null;
}

/** Increase of each counter per second between two readings, `{label: value}`; one that fell was reset to zero between them. */
export function rates(before, after, seconds) {
  const found = {};
  for (const [name, value] of Object.entries(after)) {
    if (!(name in before) || seconds <= 0) continue;
    const risen = value - before[name];
    found[name] = (risen < 0 ? value : risen) / seconds;
  }
  return found;
}

/** Return the values of the charts from two readings that are `seconds` apart. */
export function row(before, after, seconds) {
  const rate = (name) => {
    const found = Object.values(rates(byLabel(before[name], "worker"), byLabel(after[name], "worker"), seconds));
    return found.length ? found.reduce((sum, value) => sum + value, 0) : null;
  };
  const queues = byLabel(after.streamer_queue_jobs, "queue");
  const waiting = (prefix) => Object.entries(queues).filter(([name]) => name === prefix || name.startsWith(`${prefix}:`)).reduce((sum, [, value]) => sum + value, 0);
  return {
    cpu: rate("streamer_worker_cpu_seconds"),
    memory: total(after.streamer_worker_resident_bytes),
    prompt: rate("streamer_worker_prompt_tokens"),
    completion: rate("streamer_worker_completion_tokens"),
    queries: waiting("queries"),
    watches: waiting("watches"),
    files: waiting("files"),
  };
}
