// The keyboard: / finds, g and a letter goes, ? helps. Who speaks to his machine can turn single letters off.

import { openDialog } from "./dialog.js";
import { byId, fill, h } from "./dom.js";

const OFF = "porter.keys-off";
const G_SECONDS = 1.5;

/** views: of the console; each has a name, a title and a letter. */
export function listenForKeys(views) {
  let gUntil = 0;
  byId("help").addEventListener("click", () => showHelp(views));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (byId("app").hidden || document.querySelector("dialog[open]")) return;
    if (event.target.closest("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.key === "?") {
      showHelp(views);
    } else if (localStorage.getItem(OFF)) {
      return;
    } else if (event.key === "/") {
      (document.querySelector("#view [data-find]") ?? byId("find-name")).focus();
    } else if (event.key === "g") {
      gUntil = event.timeStamp + G_SECONDS * 1000;
    } else if (event.timeStamp < gUntil) {
      gUntil = 0;
      const view = views.find(({ letter }) => letter === event.key);
      if (!view) return;
      location.hash = `#/${view.name}`;
    } else {
      return;
    }
    event.preventDefault();
  });
}

function showHelp(views) {
  if (document.querySelector("dialog[open]")) return;
  const { body } = openDialog("Keyboard");
  const on = h("input", { type: "checkbox", id: "keys-on", checked: !localStorage.getItem(OFF) });
  on.addEventListener("change", () => (on.checked ? localStorage.removeItem(OFF) : localStorage.setItem(OFF, "1")));
  const keys = [
    [["/"], "Search here, or find a user"],
    ...views.map(({ letter, title }) => [["g", letter], title]),
    [["?"], "This help"],
    [["Esc"], "Close, or leave a field"],
  ];
  fill(
    body,
    h("dl", { class: "keys" }, keys.map(([pressed, what]) => h("div", {}, h("dt", {}, pressed.map((key) => h("kbd", {}, key))), h("dd", {}, what)))),
    h("div", { class: "option" }, on, h("label", { for: "keys-on" }, "Single keys do this")),
  );
}
