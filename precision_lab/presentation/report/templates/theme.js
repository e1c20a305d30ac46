// Light or dark: what the system says, until somebody chooses. Runs before anything is drawn.
"use strict";
const lab = {};

lab.theme = (() => {
  const key = "precision-lab-theme";
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  let chosen = null;
  try { // storage may be forbidden, above all for files
    chosen = localStorage.getItem(key);
  } catch { /* not remembered */ }
  const current = () => (chosen === "dark" || chosen === "light" ? chosen : system.matches ? "dark" : "light");
  const show = () => {
    root.dataset.theme = current();
    document.querySelector("#theme")?.setAttribute("aria-pressed", String(current() === "dark"));
  };
  const toggle = () => {
    chosen = current() === "dark" ? "light" : "dark";
    try {
      localStorage.setItem(key, chosen);
    } catch { /* not remembered */ }
    show();
  };
  system.addEventListener("change", show);
  document.addEventListener("DOMContentLoaded", () => {
    document.querySelector("#theme").addEventListener("click", toggle);
    show();
  });
  show();
  return { current };
})();
