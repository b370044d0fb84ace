/** Numbers and records as people read them. */

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** "1,204". */
export function count(number) {
  return grouped.format(number ?? 0);
}

/** "1 frame", "3 frames". */
export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

/** "940", "1.2k", "3.4M". */
export function short(number) {
  if (number < 1000) return String(Math.round(number));
  for (const [unit, size] of [["k", 1e3], ["M", 1e6], ["G", 1e9]]) {
    const value = number / size;
    if (value < 999.5) return `${value < 9.95 ? value.toFixed(1).replace(/\.0$/, "") : Math.round(value)}${unit}`;
  }
  return `${Math.round(number / 1e12)}T`;
}

/** "640 B", "12 MB". */
export function bytes(number) {
  if (number < 1000) return `${number} B`;
  return `${short(number).replace(/([kMGT])$/, " $1")}B`.replace("kB", "KB");
}

/** "2.4 Mbit/s". */
export function bitRate(number) {
  if (number >= 1e6) return `${(number / 1e6).toFixed(1)} Mbit/s`;
  return `${Math.round(number / 1e3)} kbit/s`;
}

/** "0.8 s", "120 ms". */
export function milliseconds(number) {
  if (number >= 950) return `${(number / 1000).toFixed(1)} s`;
  return `${Math.round(number)} ms`;
}

/** "97 %". */
export function percent(share) {
  return `${Math.round(share * 100)} %`;
}

/** What an answer cost: "4 frames · 7 tiles · 850 tokens (600 cached) · 0.8 s". */
export function cost(result) {
  if (!result || !result.prompt_tokens) return "";
  const cached = result.cached_tokens ? ` (${count(result.cached_tokens)} cached)` : "";
  return [
    plural(result.frames, "frame"),
    plural(result.tiles, "tile"),
    `${count(result.prompt_tokens + result.completion_tokens)} tokens${cached}`,
    milliseconds(result.total_ms),
  ].join(" · ");
}

/** Vision tokens that each frame of a result cost, on average; null if unknown. */
export function tokensPerFrame(result) {
  return result && result.frames && result.vision_tokens ? result.vision_tokens / result.frames : null;
}

/** What a result says, in one line: the answer, yes or no with a probability, or the error. */
export function saying(result) {
  if (!result) return "";
  if (result.kind === "error") return result.error?.message ?? "No answer.";
  if (result.kind === "alert" && result.data) {
    const probability = result.data.probability;
    const sure = typeof probability === "number" ? `, ${percent(probability)}` : "";
    return `${result.data.yes ? "Yes" : "No"}${sure}`;
  }
  return result.text ?? "";
}

/** Insert a piece of an answer at its place, counted in characters as Python counts them. */
export function withPiece(text, at, piece) {
  const known = text.length;
  if (at >= known) return text + piece;
  return [...text].slice(0, at).join("") + piece;
}

/** Pieces of `text`, those that match a word of the search marked: [[piece, marked], ...]. */
export function marked(text, query) {
  const words = (query ?? "").toLowerCase().match(/[\p{L}\p{N}]+/gu);
  if (!words) return [[text, false]];
  const pattern = new RegExp(`(${words.join("|")})`, "giu");
  return text.split(pattern).map((piece, index) => [piece, index % 2 === 1]).filter(([piece]) => piece);
}

/** How well `text` fits what was typed: higher is better, 0 for not at all. */
export function score(typed, text) {
  const wanted = typed.toLowerCase().replace(/\s+/g, "");
  if (!wanted) return 1;
  const given = text.toLowerCase();
  const at = given.indexOf(typed.trim().toLowerCase());
  if (at >= 0) return 1000 - at + (at === 0 || given[at - 1] === " " ? 500 : 0) - given.length / 100;
  let place = -1, points = 0;
  for (const letter of wanted) {
    const next = given.indexOf(letter, place + 1);
    if (next < 0) return 0;
    points += next === place + 1 ? 6 : next === 0 || /[\s/._-]/.test(given[next - 1]) ? 4 : 0.5;
    place = next;
  }
  return points > wanted.length * 1.5 ? points : 0;
}
