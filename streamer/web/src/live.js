/** Draw the newest pictures of a stream on a canvas. */
import { watchPictures } from "./store.js";

/** Show pictures on a canvas while it is on screen and the page is visible. */
export class CanvasFeed {
  constructor(canvas, streamId, { fps, width }) {
    this._canvas = canvas;
    this._streamId = streamId;
    this._wish = { fps, width };
    this._onScreen = false;
    this._observer = new IntersectionObserver((entries) => {
      this._onScreen = entries.at(-1).isIntersecting;
      this._renew();
    }, { rootMargin: "120px" });
    this._observer.observe(canvas);
    this._visibility = () => this._renew();
    document.addEventListener("visibilitychange", this._visibility);
  }

  close() {
    this._observer.disconnect();
    document.removeEventListener("visibilitychange", this._visibility);
    this._onScreen = false;
    this._renew();
  }

  _renew() {
    const wanted = this._onScreen && !document.hidden;
    if (wanted && !this._stop) {
      this._stop = watchPictures(this._streamId, this._wish.fps, this._wish.width, (picture) => this._show(picture));
    } else if (!wanted && this._stop) {
      this._stop();
      this._stop = null;
    }
  }

  async _show({ header, bytes }) {
    const bitmap = await createImageBitmap(new Blob([bytes], { type: header.content_type }));
    const canvas = this._canvas;
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
      canvas.width = bitmap.width;
      canvas.height = bitmap.height;
    }
    // handed over, not copied: with many cameras, copying is most of the work
    canvas.getContext("bitmaprenderer").transferFromImageBitmap(bitmap);
  }
}
