/** The list of keys (`?`). */
import { signal } from "@preact/signals";
import { useLayoutEffect, useRef } from "preact/hooks";
import { Icon } from "../icons.js";
import { groups, keyLabel } from "../keys.js";
import { html } from "./html.js";

export const helpOpen = signal(false);

const isMac = typeof navigator !== "undefined" && /Mac|iPhone|iPad/.test(navigator.platform);

export function Help() {
  const dialog = useRef(null);
  const open = helpOpen.value;
  useLayoutEffect(() => {
    if (open && !dialog.current.open) dialog.current.showModal();
    if (!open && dialog.current.open) dialog.current.close();
  }, [open]);
  const close = () => (helpOpen.value = false);
  return html`<dialog ref=${dialog} aria-labelledby="help-title" onClose=${close} onClick=${(event) => event.target === dialog.current && close()}>
    <div class="head"><h2 id="help-title" class="grow">Keys</h2>
      <button class="button plain square" aria-label="Close" onClick=${close}><${Icon} name="close" /></button></div>
    <div class="help">
      ${open && groups.value.map((group) => html`<section>
        <h3>${group.title}</h3>
        ${group.keys.filter(([, label]) => label).map(([key, label]) => html`<div class="row"><span>${label}</span><kbd>${keyLabel(key, isMac)}</kbd></div>`)}
      </section>`)}
    </div>
  </dialog>`;
}
