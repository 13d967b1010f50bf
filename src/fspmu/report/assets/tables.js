// Tables that sort by their columns.

/** Return an order of rows by the sorting values of a column: numbers by size, texts by alphabet, empty ones last in both directions. */
export function sortedRows(rows, valueOf, descending) {
  const sign = descending ? -1 : 1;
  const compare = (a, b) => {
    const [x, y] = [valueOf(a), valueOf(b)];
    if (x === "" || y === "") return x === y ? 0 : x === "" ? 1 : -1;
    const [n, m] = [Number(x), Number(y)];
    return Number.isNaN(n) || Number.isNaN(m) ? sign * x.localeCompare(y) : sign * (n - m);
  };
  return [...rows].sort(compare);
}

/** Let the buttons in the heads of sortable tables sort them. */
export function startTables() {
  document.querySelectorAll("table.sortable").forEach((table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) =>
      head.querySelector("button")?.addEventListener("click", () => {
        const descending = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : head.dataset.first !== "up";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        const valueOf = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
        table.tBodies[0].append(...sortedRows(table.tBodies[0].rows, valueOf, descending));
      }),
    );
  });
}
