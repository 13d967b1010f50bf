// Ways through the page, its colours, and whether a review is safe.

import { byId, calm, copyText } from "./dom.js";

function startLinks() {
  const links = [...document.querySelectorAll("[data-panel]")];
  links.forEach((link) =>
    link.addEventListener("click", (event) => {
      // The part of the address after # holds the view, so links to panels leave it alone.
      const panel = byId(link.dataset.panel);
      if (!panel) return;
      event.preventDefault();
      panel.scrollIntoView({ behavior: calm() ? "auto" : "smooth" });
      panel.querySelector("h1, h2")?.focus({ preventScroll: true });
      byId("nav").classList.remove("open");
      byId("nav-open").setAttribute("aria-expanded", "false");
    }),
  );
  const seen = new Map();
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) seen.set(entry.target.id, entry.isIntersecting);
      const first = [...document.querySelectorAll("main > section")].find((section) => seen.get(section.id));
      links.forEach((link) => (link.dataset.panel === first?.id ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
    },
    { rootMargin: "-15% 0px -70% 0px" },
  );
  document.querySelectorAll("main > section").forEach((section) => watcher.observe(section));
  byId("nav-open").addEventListener("click", ({ currentTarget }) => currentTarget.setAttribute("aria-expanded", String(byId("nav").classList.toggle("open"))));
}

function startTheme(app) {
  const show = () => {
    const chosen = app.prefs.get("theme");
    if (chosen) document.documentElement.dataset.theme = chosen;
    const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    byId("theme").setAttribute("aria-pressed", String(dark));
    byId("theme").setAttribute("aria-label", dark ? "Use light colours" : "Use dark colours");
    byId("theme").textContent = dark ? "☀" : "☾";
    app.emit("theme");
  };
  byId("theme").addEventListener("click", ({ currentTarget }) => {
    app.prefs.set("theme", currentTarget.getAttribute("aria-pressed") === "true" ? "light" : "dark");
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
}

const SAFE = {
  kept: "",
  off: "This browser keeps nothing (private window?): export before you close the page.",
  full: "The browser's storage is full: export before you close the page.",
};

const SAVED = { saving: "Saving…", saved: "Saved", failed: "Not saved; trying again", refused: "Not saved" };

function note(id, text) {
  Object.assign(byId(id), { textContent: text, hidden: !text });
}

/** Return the function that says how saving went: report(place, state, why). */
export function savedStates() {
  return (place, state, why) => {
    if (place === "browser") note("storage-note", SAFE[state]);
    else if (place === "left out") note("left-out-note", "Earlier decisions that fit no image, class or given label of this page are left out.");
    else {
      note("server-state", SAVED[state]);
      byId("server-state").dataset.state = state;
      if (state !== "saving") note("server-note", state === "saved" ? "" : `${SAVED[state]}: ${why}`);
    }
  };
}

function startBadge(app, server) {
  const show = () => {
    const waiting = app.review.decisions.size > 0 && app.exported !== app.review.revision;
    byId("unexported").hidden = !waiting || server;
  };
  app.on("review exported adopted", show);
  show();
}

/** Set up links, colours, copy buttons and the badge. */
export function startNavigation(app, server) {
  startLinks();
  startTheme(app);
  startBadge(app, Boolean(server));
  byId("copy-command")?.addEventListener("click", () => copyText(byId("command").textContent, "Command"));
}
