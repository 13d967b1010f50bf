// The class picker: type a few letters, press Enter.

import { className, likelyClasses, percent } from "./data.js";
import { byId, h, name } from "./dom.js";

/** Return class numbers that fit a typed text: names that begin with it, then names that contain it; `first` classes lead. */
export function fittingClasses(classes, typed, first = [], most = 200) {
  const wanted = typed.trim().toLowerCase();
  const order = [...new Set([...first, ...classes.keys()])];
  const [begin, contain] = [[], []];
  for (const label of order) {
    const at = classes[label].toLowerCase().indexOf(wanted);
    if (at === 0) begin.push(label);
    else if (at > 0) contain.push(label);
  }
  return [...begin, ...contain].slice(0, most);
}

/** Set the picker up; returns a function that asks for a class and calls `then(label)`. */
export function startPicker(app) {
  const [dialog, field, list] = [byId("picker"), byId("picker-text"), byId("picker-list")];
  let [found, active, then, first, chances] = [[], 0, null, [], new Map()];

  const mark = () => {
    [...list.children].forEach((option, at) => option.setAttribute("aria-selected", String(at === active)));
    const option = list.children[active];
    option?.scrollIntoView({ block: "nearest" });
    field.setAttribute("aria-activedescendant", option ? option.id : "");
  };
  const fill = () => {
    found = fittingClasses(app.page.classes, field.value, first);
    active = 0;
    list.replaceChildren(
      ...found.map((label, at) =>
        h(
          "li",
          { role: "option", id: `picker-${at}`, on: { click: () => choose(at) } },
          name(className(app.page, label)),
          chances.has(label) ? h("span", { class: "soft" }, percent(chances.get(label), 1)) : null,
        ),
      ),
    );
    if (!found.length) list.replaceChildren(h("li", { class: "soft" }, "No class has that name"));
    mark();
  };
  const choose = (at) => {
    dialog.close();
    if (found[at] !== undefined) then(found[at]);
  };
  field.addEventListener("input", fill);
  field.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && found.length) {
      active = (active + step + found.length) % found.length;
      mark();
    } else if (event.key === "Enter") choose(active);
    else return;
    event.preventDefault();
  });
  return (item, title, onChoice) => {
    then = onChoice;
    first = item === null ? [] : likelyClasses(app.page, item, app.model);
    chances = new Map(item === null ? [] : (app.page.items[app.model][item] ?? []));
    byId("picker-title").textContent = title;
    field.value = "";
    fill();
    dialog.showModal();
    field.focus();
  };
}
