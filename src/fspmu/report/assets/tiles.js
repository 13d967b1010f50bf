// Pictures from the sprite sheets.

import { className } from "./data.js";
import { h } from "./dom.js";

function cssText(text) {
  return `"${text.replace(/["\\\n\r\f<]/g, (sign) => `\\${sign.codePointAt(0).toString(16)} `)}"`;
}

/** Make a style rule for each sheet, so that a large address is written once and not on every tile. */
export function registerSheets(sheets) {
  const style = document.getElementById("page-style").sheet;
  sheets.forEach((sheet, at) => style.insertRule(`.sheet-${at} { background-image: url(${cssText(sheet.src)}); }`, style.cssRules.length));
}

/** Return what a picture is called: its id and its labels. */
export function describe(page, item) {
  const { id, given, suggested } = page.items;
  const change = given[item] === suggested[item] ? "" : `, suggested ${className(page, suggested[item])}`;
  return `${id[item]}: given ${className(page, given[item])}${change}`;
}

/** Show the picture of a sample in an element at `size` pixels. */
export function paintTile(element, page, item, size) {
  const place = page.items.tile[item];
  if (!place) {
    element.className = "thumb empty";
    element.textContent = "no picture";
    element.removeAttribute("style");
    return element;
  }
  const [at, x, y] = place;
  const sheet = page.sheets[at];
  const scale = size / sheet.tile;
  element.textContent = "";
  element.className = `thumb sheet-${at}${scale >= 1.5 ? " pixels" : ""}`;
  element.style.setProperty("width", `${size}px`);
  element.style.setProperty("height", `${size}px`);
  element.style.setProperty("background-size", `${sheet.width * scale}px ${sheet.height * scale}px`);
  element.style.setProperty("background-position", `${-x * scale}px ${-y * scale}px`);
  return element;
}

/** Return a new picture of a sample. */
export function newTile(page, item, size) {
  const tile = paintTile(h("span", { role: "img", "aria-label": describe(page, item) }), page, item, size);
  tile.style.setProperty("width", `${size}px`);
  tile.style.setProperty("height", `${size}px`);
  return tile;
}

/** Return the largest picture there is of a sample: its own file, or its tile. */
export function largePicture(page, item, size) {
  const source = page.large?.[item];
  if (!source) return newTile(page, item, size);
  const image = h("img", { src: source, alt: describe(page, item), class: "large", draggable: "false" });
  image.addEventListener("load", () => image.classList.toggle("pixels", image.naturalWidth * 1.5 <= size));
  image.addEventListener("error", () => image.replaceWith(newTile(page, item, size)));
  return image;
}
