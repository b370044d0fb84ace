/** Live video: MP4 from the socket, played by Media Source Extensions in a `video` element. */
import { whileSeen } from "./live.js";
import { watchVideo } from "./store.js";

const TRIED = {
  h264: 'video/mp4; codecs="avc1.640028"',
  hevc: 'video/mp4; codecs="hvc1.1.6.L120.90"',
  av1: 'video/mp4; codecs="av01.0.08M.08"',
};
const NAMES = { h264: "H.264", hevc: "H.265", av1: "AV1", mjpeg: "MJPEG", mpeg4: "MPEG-4", vp8: "VP8", vp9: "VP9" };

const REST = 0.25; // seconds of video in hand, beside the longest pause between two pieces
const MAX_BEHIND = 3;
const KEPT = 6; // seconds of played video
const SILENCE = 5000;
const RETRY = 1000;
const MAX_FAILURES = 4;
const FORGIVEN = 60000;
const PATIENCE = 4000;
const MAX_QUEUED = 16 << 20;

/** The class that plays pieces of video; undefined: this browser has none. */
export const mediaSource = () => globalThis.MediaSource ?? globalThis.ManagedMediaSource;

/** Why a codec is shown as pictures; null: it may be played. */
export function unplayable(codec, Source = mediaSource()) {
  const name = NAMES[codec] ?? codec?.toUpperCase();
  if (!Source) return "Pictures, because this browser plays no live video";
  if (!codec) return null;
  if (!TRIED[codec]) return `Pictures, because browsers play no ${name}`;
  return Source.isTypeSupported(TRIED[codec]) ? null : `Pictures, because this browser plays no ${name}`;
}

/**
 * What keeps playing close to now: `to`, a time to jump to, and `rate`, the speed.
 * `ranges` are [start, end] of what can be played, `wait` the longest pause between two pieces.
 */
export function pace(at, ranges, wait) {
  if (!ranges.length) return {};
  const [start, end] = ranges.at(-1);
  const behind = end - at;
  if (at < start || behind > wait + MAX_BEHIND) return { to: Math.max(start, end - wait - REST), rate: 1 };
  if (behind > wait + 3 * REST) return { rate: 1.1 };
  return behind < wait + REST ? { rate: 1 } : {};
}

/** The longest of the last pauses; each counts less with time. */
export function longestPause(before, pause) {
  return Math.min(10, Math.max(pause, 0.1, before * 0.97));
}

/**
 * Plays the live video of a stream while its element is on screen. `tell` hears "waiting",
 * "playing", or a sentence that says why there are pictures instead.
 */
export class VideoPlayer {
  constructor(video, streamId, tell) {
    this._video = video;
    this._streamId = streamId;
    this._tell = tell;
    this._failures = 0;
    this._failedAt = 0;
    this._url = null;
    video.onerror = () => this._url && this._fail();
    video.onplaying = () => this._source && this._tell("playing");
    this._end = whileSeen(video.parentElement, () => {
      this._begin();
      return () => this._stop();
    });
  }

  close() {
    this._end();
    this._video.onerror = this._video.onplaying = null;
  }

  _begin() {
    this._late = setTimeout(() => this._tell("Pictures until the camera’s next key frame"), PATIENCE);
    this._unwatch = watchVideo(this._streamId, (header, bytes) => this._take(header, bytes));
  }

  _stop() {
    clearTimeout(this._retry);
    clearTimeout(this._late);
    this._unwatch?.();
    this._unwatch = null;
    this._clear();
  }

  // Without a source, the element shows nothing, and the pictures behind it are seen.
  _clear() {
    clearTimeout(this._doubt);
    this._source = this._buffer = null;
    if (this._url) {
      URL.revokeObjectURL(this._url);
      this._url = null;
      this._video.removeAttribute("src");
      this._video.load();
    }
    this._tell("waiting");
  }

  // Subscribe again: the video then begins with a key frame.
  _restart(after) {
    this._stop();
    this._retry = setTimeout(() => this._begin(), after);
  }

  _fail() {
    const now = performance.now();
    this._failures = now - this._failedAt < FORGIVEN ? this._failures + 1 : 1;
    this._failedAt = now;
    if (this._failures < MAX_FAILURES) return this._restart(RETRY * this._failures);
    this._giveUp("Pictures, because this browser cannot decode the video");
  }

  _giveUp(why) {
    this._stop();
    this._tell(why);
  }

  _take(header, bytes) {
    if (header.error) {
      this._giveUp("Pictures, because the service sends no more video now");
      this._retry = setTimeout(() => this._begin(), 30 * RETRY);
      return;
    }
    const now = performance.now();
    if (header.start && !this._open(header.content_type)) return;
    if (!this._source) return this._restart(RETRY);
    if (!header.start) this._wait = longestPause(this._wait, (now - this._heard) / 1000);
    this._heard = now;
    clearTimeout(this._doubt);
    this._doubt = setTimeout(() => this._clear(), SILENCE + 2000 * this._wait);
    this._queue.push(bytes);
    this._queued += bytes.length;
    if (this._queued > MAX_QUEUED) this._fail();
    else this._append();
  }

  // Returns whether the browser takes this video.
  _open(type) {
    const Source = mediaSource();
    clearTimeout(this._late);
    if (!Source.isTypeSupported(type)) {
      this._giveUp("Pictures, because this browser does not play this video");
      return false;
    }
    this._clear();
    const source = new Source();
    Object.assign(this, { _source: source, _queue: [], _queued: 0, _wait: 0.2, _begun: false });
    this._url = URL.createObjectURL(source);
    source.onsourceopen = () => {
      if (source !== this._source || this._buffer) return;
      this._buffer = source.addSourceBuffer(type);
      this._buffer.onupdateend = () => source === this._source && this._follow();
      this._buffer.onerror = () => source === this._source && this._fail();
      this._append();
    };
    this._video.disableRemotePlayback = true; // what Safari on phones asks for
    this._video.src = this._url;
    return true;
  }

  _append() {
    if (!this._buffer || this._buffer.updating || !this._queue.length) return;
    const bytes = this._queue.shift();
    this._queued -= bytes.length;
    try {
      this._buffer.appendBuffer(bytes);
    } catch {
      this._fail();
    }
  }

  _follow() {
    const { _video: video, _buffer: buffer } = this;
    const ranges = Array.from({ length: buffer.buffered.length }, (_, n) => [buffer.buffered.start(n), buffer.buffered.end(n)]);
    const { to, rate } = pace(this._begun ? video.currentTime : -1, ranges, this._wait);
    if (to !== undefined) video.currentTime = to;
    if (rate !== undefined) video.playbackRate = rate;
    if (ranges.length && video.paused) video.play().catch(() => {}); // it is muted, so it may
    this._begun ||= ranges.length > 0;
    if (ranges.length && video.currentTime - ranges[0][0] > 2 * KEPT) buffer.remove(0, video.currentTime - KEPT);
    else this._append();
  }
}
