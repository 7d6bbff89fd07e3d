// Dialogs and small menus. Esc closes both, and focus goes back to where it was.

import { button, h } from "./dom.js";

let made = 0;

/** Show a dialog; gives {element, body, close}. It is taken away once closed. */
export function openDialog(title, { wide = false, onClose = () => {} } = {}) {
  const id = `dialog-${(made += 1)}`;
  const body = h("div", { class: "dialog-body" });
  const opener = document.activeElement;
  const close = () => element.close();
  const element = h(
    "dialog",
    { "aria-labelledby": id, class: wide ? "wide" : null },
    h(
      "header",
      {},
      h("h2", { id }, title),
      button("×", close, { class: "quiet close", "aria-label": "Close" }),
    ),
    body,
  );
  element.addEventListener("close", () => {
    element.remove();
    if (opener?.isConnected) opener.focus();
    onClose();
  });
  document.body.append(element);
  element.showModal();
  return { element, body, close };
}

/** A button that opens a menu of further ones: items() gives [label, act, disabled?]. */
export function menuButton(label, items, attributes = {}) {
  const opener = button("⋯", () => open(), { class: "quiet", "aria-haspopup": "menu", "aria-label": label, ...attributes });

  function open() {
    const buttons = items().map(([text, act, disabled]) =>
      button(text, () => {
        menu.hidePopover();
        opener.focus();
        act();
      }, { role: "menuitem", disabled }),
    );
    const menu = h("div", { class: "menu", popover: "auto", role: "menu", "aria-label": label }, buttons);
    menu.addEventListener("toggle", (event) => {
      if (event.newState === "closed") menu.remove();
    });
    menu.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      const able = buttons.filter((each) => !each.disabled);
      if (step) able.at((able.indexOf(document.activeElement) + step) % able.length).focus();
      if (event.key === "Escape") opener.focus();
      if (step) event.preventDefault();
    });
    opener.after(menu);
    menu.showPopover();
    const box = opener.getBoundingClientRect();
    const below = box.bottom + menu.offsetHeight + 8 < innerHeight;
    menu.style.setProperty("left", `${Math.max(8, box.right - menu.offsetWidth)}px`);
    menu.style.setProperty("top", `${below ? box.bottom + 4 : box.top - menu.offsetHeight - 4}px`);
    buttons.find((each) => !each.disabled)?.focus();
  }
  return opener;
}
