// Comma-separated values as RFC 4180 has them, with cells that no spreadsheet reads as a formula.

// Apostrophes before the sign count as well, so that taking one away gives back whatever the text was.
const RISKY = /^'*[=+\-@\t\r]/;

/** Return one cell: quoted where the format needs it, and disarmed by an apostrophe where a spreadsheet would calculate. */
export function csvCell(value) {
  const text = value === null || value === undefined ? "" : String(value);
  const safe = RISKY.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

/** Return a table as text: a line for the columns, then a line for each row (an array in the order of the columns). */
export function toCsv(columns, rows) {
  return [columns, ...rows].map((row) => `${row.map(csvCell).join(",")}\r\n`).join("");
}
