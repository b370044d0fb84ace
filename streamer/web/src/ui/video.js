/** The live video of a stream; its newest pictures until it plays, and where it cannot be played. */
import { useEffect, useRef, useState } from "preact/hooks";
import { VideoPlayer, unplayable } from "../video.js";
import { html } from "./html.js";
import { LivePicture, useCondition } from "./picture.js";

const PICTURES = { fps: 5, width: 1280 };
const BEHIND_VIDEO = { fps: 1, width: 320 }; // they say how old the newest picture is

/** Video of the stream `id`, or pictures of it and why. `codec` is that of its camera. */
export function LiveVideo({ id, codec }) {
  const element = useRef(null);
  const [playback, setPlayback] = useState("waiting");
  const why = unplayable(codec);
  const { state } = useCondition(id);
  useEffect(() => {
    if (!codec || why) return undefined;
    const player = new VideoPlayer(element.current, id, setPlayback);
    return () => player.close();
  }, [id, codec, why]);
  const playing = playback === "playing" && !why;
  const reason = why ?? (playback === "playing" || playback === "waiting" ? null : playback);
  return html`<${LivePicture} id=${id} video=${playing} ...${playing ? BEHIND_VIDEO : PICTURES}>
    <video ref=${element} class=${playing ? "live playing" : "live"} muted playsinline aria-label="Live video" />
    ${reason && state === "live" && html`<p class="why">${reason}</p>`}
  <//>`;
}
