// A table whose rows are sorted by the buttons in its head and filtered by words.
const MOST_ROWS = 3000;

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// A column: its title, its text, and its number if it is sorted by one.
const column = (title, text, number) => ({ title, text, number });

function fill(table, columns, rows) {
  const body = table.tBodies[0] ?? table.appendChild(element("tbody"));
  body.replaceChildren(...rows.map((row) => {
    const line = element("tr");
    line.append(...columns.map(({ text, number }, place) =>
      element(place ? "td" : "th", text(row), place ? (number ? { class: "n" } : {}) : { scope: "row" })));
    return line;
  }));
}

function head(table, columns, onSort) {
  const line = element("tr");
  line.append(...columns.map(({ title, number }, place) => {
    const cell = element("th", onSort ? undefined : title, { scope: "col", ...(number ? { class: "n" } : {}) });
    if (onSort) {
      const button = element("button", title, { type: "button" });
      button.addEventListener("click", () => onSort(place));
      cell.append(button);
    }
    return cell;
  }));
  const made = element("thead");
  made.append(line);
  table.tHead?.remove();
  table.prepend(made);
}

class SortedTable {
  constructor(table, filter, shown, columns) {
    Object.assign(this, { table, filter, shown, columns, rows: [], by: -1, descending: false });
    head(table, columns, (place) => this.sort(place));
    filter.addEventListener("input", () => this.show());
  }

  sort(place) {
    this.descending = this.by === place && !this.descending;
    this.by = place;
    [...this.table.tHead.rows[0].cells].forEach((cell, number) =>
      number === place
        ? cell.setAttribute("aria-sort", this.descending ? "descending" : "ascending")
        : cell.removeAttribute("aria-sort"));
    this.show();
  }

  // The rows with all words of the filter, in the order that was asked for.
  found() {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = this.rows.filter((row) => {
      const text = `${row.name} ${row.kind} ${row.type}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
    return this.by < 0 ? found : this.sorted(found);
  }

  show(rows = this.rows) {
    this.rows = rows;
    const found = this.found();
    fill(this.table, this.columns, found.slice(0, MOST_ROWS));
    const cut = found.length > MOST_ROWS ? `, the first ${countText(MOST_ROWS)} shown` : "";
    this.shown.textContent = `${countText(found.length)} of ${countText(rows.length)} tensors${cut}`;
  }

  sorted(rows) {
    const { text, number } = this.columns[this.by];
    const order = number
      ? (a, b) => (number(a) < number(b) ? -1 : number(a) > number(b) ? 1 : 0)
      : (a, b) => text(a).localeCompare(text(b), "en", { numeric: true });
    const way = this.descending ? -1 : 1;
    return [...rows].sort((a, b) => way * order(a, b));
  }
}

// Text is quoted, and cannot be a formula, whatever a tensor is called.
function csvCell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "string") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return `"${text.replaceAll('"', '""')}"`;
}

// Save rows as a CSV file; a blob of the page itself needs no server and no permission.
function download(name, fields, rows) {
  const lines = [fields.map(([key]) => key), ...rows.map((row) => fields.map(([, value]) => csvCell(value(row))))];
  const blob = new Blob([lines.map((line) => line.join(",")).join("\r\n") + "\r\n"], { type: "text/csv" });
  const link = element("a", undefined, { download: name, href: URL.createObjectURL(blob) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
