// Small helpers for the document. Text always goes in as text: no markup is ever made from data.

const SVG = "http://www.w3.org/2000/svg";

/** Return the element with an id. */
export function byId(id) {
  return document.getElementById(id);
}

/** Return a new element; props are attributes, `on` holds listeners, `class` and `text` are what they say; null children are left out. */
export function h(tag, props = {}, ...children) {
  const element = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "text") element.textContent = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Return a name that came from data, kept from turning the direction of the words around it. */
export function name(text, props = {}) {
  return h("bdi", { ...props, text: text === "" ? "(empty name)" : text });
}

/** Return a button. */
export function button(label, onClick, props = {}) {
  return h("button", { type: "button", ...props, on: { click: onClick } }, ...[label].flat());
}

/** Return a function that runs `action` once things have been quiet for `wait` milliseconds. */
export function debounced(action, wait) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), wait);
  };
}

/** Return a function that runs `action` at most once per frame. */
export function framed(action) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      action();
    });
  };
}

/** Say something to screen readers, and to everyone else for a moment. */
export function announce(text) {
  const live = byId("live");
  live.textContent = text;
  live.classList.add("shown");
  clearTimeout(Number(live.dataset.timer));
  live.dataset.timer = String(setTimeout(() => live.classList.remove("shown"), 2600));
}

/** Hand a text to the person as a file. */
export function download(fileName, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  const link = h("a", { href: address, download: fileName });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** Copy a text, the old way where the new one is not allowed, and say so. */
export async function copyText(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h("textarea", { class: "offscreen" });
    area.value = text;
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  announce(`${what} copied`);
}

/** Return whether the person asked for less motion. */
export function calm() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}

/** Return whether keys typed into an element are text or belong to the element. */
export function takesKeys(element) {
  return Boolean(element?.closest?.("input, textarea, select, [contenteditable]"));
}

/** Run `action` when an element is about to be seen, on the screen or on paper. */
export function whenSeen(element, action) {
  const run = () => {
    watcher.disconnect();
    removeEventListener("beforeprint", run);
    action();
  };
  const watcher = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && run(), { rootMargin: "200px" });
  watcher.observe(element);
  addEventListener("beforeprint", run);
}
