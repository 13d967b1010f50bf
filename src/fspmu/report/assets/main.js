// Puts the parts together.

import { drawCurves } from "./charts.js";
import { startControls } from "./controls.js";
import { readPage } from "./data.js";
import { byId, debounced, whenSeen } from "./dom.js";
import { startDrawer } from "./drawer.js";
import { viewToHash } from "./filters.js";
import { startFlips } from "./flips.js";
import { startGrid } from "./grid.js";
import { startHistogram } from "./histogram.js";
import { startExchange } from "./importing.js";
import { startKeyboard } from "./keyboard.js";
import { startMap } from "./map.js";
import { startMatrix } from "./matrix.js";
import { savedStates, startNavigation } from "./navigation.js";
import { startPicker } from "./picker.js";
import { applyHash, decideItems, newApp, refreshList } from "./state.js";
import { browserStorage, keepReview, newPrefs } from "./storage.js";
import { startTables } from "./tables.js";
import { registerSheets } from "./tiles.js";

function startAddress(app) {
  const write = debounced(() => {
    const item = app.drawer && app.current !== null ? app.page.items.id[app.current] : null;
    const hash = viewToHash({ ...app, item });
    try {
      history.replaceState(null, "", hash ? `#${hash}` : location.href.split("#")[0]);
    } catch {
      // Some embedded browsers forbid it; the view is then merely not in the address.
    }
  }, 120);
  app.on("list current", write);
  window.addEventListener("hashchange", () => location.hash.includes("=") && applyHash(app, location.hash));
}

/** Start the page from its data. */
export function startPage() {
  const read = (id) => JSON.parse(byId(id)?.textContent ?? "null");
  const page = readPage(read("payload"));
  const server = read("server");
  const storage = browserStorage();
  const app = newApp(page, newPrefs(storage));
  registerSheets(page.sheets);
  if (page.reviewable) keepReview(app, { storage, server, report: savedStates() });
  const ask = startPicker(app);
  const pick = (items) =>
    ask(items[0], items.length > 1 ? `New label for ${items.length} images` : "New label", (label) =>
      decideItems(app, items, () => ({ decision: "accept", label })),
    );
  pick.direct = (item, label) => page.reviewable && decideItems(app, [item], () => ({ decision: "accept", label }));
  const grid = startGrid(app);
  const drawer = startDrawer(app, pick);
  startControls(app, pick);
  startMatrix(app);
  const map = startMap(app);
  startExchange(app);
  startKeyboard(app, { grid, drawer, map, pick });
  startNavigation(app, server);
  startTables();
  startFlips(app);
  const drawHistogram = startHistogram(app);
  app.on("adopted", () => refreshList(app));
  if (location.hash.includes("=")) applyHash(app, location.hash);
  else refreshList(app);
  startAddress(app);
  if (byId("histogram")) whenSeen(byId("histogram-frame"), drawHistogram);
  if (byId("curve-0")) whenSeen(byId("curves"), () => drawCurves(app));
  if (byId("map")) whenSeen(byId("map"), map.start);
  document.documentElement.classList.add("alive");
}

startPage();
