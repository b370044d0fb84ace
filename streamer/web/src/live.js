/** Draw the newest pictures of a stream on a canvas. */
import { watchPictures } from "./store.js";

/** Call `begin` when an element is on screen and the page visible, and what it returned when that ends. Returns what ends it for good. */
export function whileSeen(element, begin) {
  let onScreen = false, end = null;
  const renew = () => {
    const seen = onScreen && !document.hidden;
    if (seen && !end) end = begin();
    else if (!seen && end) {
      end();
      end = null;
    }
  };
  const observer = new IntersectionObserver((entries) => {
    onScreen = entries.at(-1).isIntersecting;
    renew();
  }, { rootMargin: "120px" });
  observer.observe(element);
  document.addEventListener("visibilitychange", renew);
  return () => {
    observer.disconnect();
    document.removeEventListener("visibilitychange", renew);
    onScreen = false;
    renew();
  };
}

/** Show pictures on a canvas while it is on screen and the page is visible. */
export class CanvasFeed {
  constructor(canvas, streamId, { fps, width }) {
    this._canvas = canvas;
    this.close = whileSeen(canvas, () => watchPictures(streamId, fps, width, (picture) => this._show(picture)));
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
