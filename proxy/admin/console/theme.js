// Light, dark, or as the system has it. A script of its own, run before anything is painted.
(() => {
  const KEY = "porter.theme";
  const ORDER = ["auto", "light", "dark"];
  const root = document.documentElement;

  const chosen = () => {
    const theme = localStorage.getItem(KEY);
    return ORDER.includes(theme) ? theme : "auto";
  };
  root.dataset.theme = chosen();

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const tell = () => {
      button.textContent = { auto: "Auto", light: "Light", dark: "Dark" }[root.dataset.theme];
      button.setAttribute("aria-label", `Theme: ${root.dataset.theme}`);
      button.title = "Theme: as the system has it, light, or dark";
    };
    button.addEventListener("click", () => {
      root.dataset.theme = ORDER[(ORDER.indexOf(chosen()) + 1) % ORDER.length];
      localStorage.setItem(KEY, root.dataset.theme);
      tell();
    });
    tell();
  });
})();
