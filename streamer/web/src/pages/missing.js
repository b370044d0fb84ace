/** An address that leads nowhere. */
import { html } from "../ui/html.js";
import { Top } from "../ui/shell.js";
import { Empty } from "../ui/states.js";

export default function Missing() {
  return html`<${Top} title="Nothing here" />
    <${Empty} icon="warning" title="There is no such page" text="The address may be misspelt."><a class="button" href="/">Go to the cameras</a><//>`;
}
