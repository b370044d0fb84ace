/** The one socket of the page: events, pictures and answers, and how it comes back when it is lost. */

const PAUSES = [250, 500, 1000, 2000, 4000, 8000];
const SILENCE = 25000;

// milliseconds in which wishes are gathered: those of one scroll come one by one
const TOGETHER = 60;

/** Milliseconds before the next try, with up to a quarter more at random. */
export function pauseBefore(attempt, random = Math.random) {
  return PAUSES[Math.min(attempt, PAUSES.length - 1)] * (1 + random() / 4);
}

/** The header and the bytes of a binary message. */
export function readPicture(buffer) {
  const length = new DataView(buffer).getUint32(0);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  return { header, bytes: new Uint8Array(buffer, 4 + length) };
}

/** The message that subscribes to what is wanted. `pictures` are {stream, fps, width}, `videos` streams. */
export function subscription({ pictures, videos = [], queries, position }) {
  const message = { type: "subscribe", queries: [...new Set(queries)].slice(0, 100) };
  if (position) message.after = position;
  if (videos.length) message.video = { streams: [...new Set(videos)].slice(0, 4) };
  if (pictures.length) {
    message.frames = {
      streams: [...new Set(pictures.map((each) => each.stream))].slice(0, 100),
      fps: Math.max(...pictures.map((each) => each.fps)),
      width: Math.max(...pictures.map((each) => each.width)),
    };
  }
  return message;
}

/**
 * A socket that stays open. `on` has the functions `event`, `resync`, `hello`, `picture`, `video`, `query`,
 * `state` ("connecting", "open" or "lost"), `refused` and `unauthorized`.
 */
export class LiveSocket {
  constructor(url, on, { open = (to) => new WebSocket(to), later = (run, ms) => setTimeout(run, ms), cancel = (timer) => clearTimeout(timer) } = {}) {
    this.url = url;
    this.on = on;
    this.position = null;
    this._open = open;
    this._later = later;
    this._cancel = cancel;
    this._pictures = new Set();
    this._videos = [];
    this._queries = new Set();
    this._attempt = 0;
    this._socket = null;
    this._stopped = true;
  }

  start() {
    this._stopped = false;
    this._connect();
  }

  stop() {
    this._stopped = true;
    this._cancel(this._retry);
    this._cancel(this._doubt);
    this._socket?.close();
  }

  /** Try again now, if the socket is lost. */
  hurry() {
    if (this._stopped || this._socket) return;
    this._cancel(this._retry);
    this._connect();
  }

  /** Ask for pictures of a stream until the returned function is called. */
  watch(stream, fps, width) {
    const wish = { stream, fps, width };
    this._pictures.add(wish);
    this._renew(this._pictures.size === 1 ? 0 : TOGETHER);
    return () => {
      this._pictures.delete(wish);
      this._renew();
    };
  }

  /** Ask for the video of a stream until the returned function is called. */
  film(stream) {
    this._videos.push(stream);
    this._renew();
    return () => {
      this._videos.splice(this._videos.indexOf(stream), 1);
      this._renew();
    };
  }

  /** Follow the answer to a query until the returned function is called. */
  follow(queryId) {
    this._queries.add(queryId);
    this._renew();
    return () => {
      if (this._queries.delete(queryId)) this._renew();
    };
  }

  /** Say that a picture has been shown. */
  acknowledge({ stream_id, frame }) {
    this._send({ type: "ack", stream_id, frame });
  }

  _connect() {
    this.on.state("connecting");
    const socket = this._open(this.url);
    socket.binaryType = "arraybuffer";
    this._socket = socket;
    socket.onopen = () => {
      this._subscribed = null;
      this._subscribe();
      this._watchSilence();
    };
    socket.onmessage = (message) => {
      if (socket !== this._socket) return;
      this._heard = true;
      if (typeof message.data === "string") this._handle(JSON.parse(message.data));
      else {
        const { header, bytes } = readPicture(message.data);
        if (header.type === "video") this.on.video(header, bytes);
        else this.on.picture({ header, bytes });
      }
    };
    socket.onclose = (event) => {
      if (socket === this._socket) this._lost(event.code);
    };
  }

  _lost(code) {
    this._socket = null;
    this._cancel(this._doubt);
    if (this._stopped) return;
    this.on.state("lost");
    if (code === 4401) {
      this._stopped = true;
      this.on.unauthorized();
      return;
    }
    this._retry = this._later(() => this._connect(), pauseBefore(this._attempt++));
  }

  _handle(message) {
    if (message.type === "hello") {
      this._attempt = 0;
      this.position = message.position ?? this.position;
      this.on.state("open");
      this.on.hello(message);
    } else if (message.type === "event") {
      this.position = message.event.id;
      this.on.event(message.event);
    } else if (message.type === "resync") {
      this.position = message.position ?? this.position;
      this.on.resync(message.reason);
    } else if (message.type.startsWith("query.")) {
      this.on.query(message.type.slice(6), message.query_id, message.data);
    } else if (message.type === "video.refused") {
      this.on.video(message, null);
    } else if (message.type === "error") {
      this.on.refused(message.error);
    }
  }

  _renew(pause = TOGETHER) {
    if (this._renewal) return;
    this._renewal = this._later(() => {
      this._renewal = null;
      this._subscribe();
    }, pause);
  }

  _subscribe() {
    if (this._socket?.readyState !== 1) return;
    const message = subscription({ pictures: [...this._pictures], videos: this._videos, queries: this._queries, position: this.position });
    const wish = JSON.stringify({ ...message, after: null });
    if (wish === this._subscribed) return;
    this._subscribed = wish;
    this._send(message);
  }

  _send(message) {
    if (this._socket?.readyState === 1) this._socket.send(JSON.stringify(message));
  }

  // A network that is gone closes no socket: after a silence, the service must answer.
  _watchSilence() {
    this._heard = false;
    const socket = this._socket;
    this._doubt = this._later(async () => {
      if (socket !== this._socket) return;
      if (!this._heard && !(await this.on.alive())) {
        if (socket === this._socket) {
          socket.onclose = null;
          socket.close();
          this._lost(0);
        }
        return;
      }
      if (socket === this._socket) this._watchSilence();
    }, SILENCE);
  }
}
