// Tables that are updated in place, so that neither focus nor place is lost; on a phone each row is a card.

import { fill, h, nothing } from "./dom.js";

export class Table {
  #columns;
  #key;
  #empty;
  #rows = new Map(); // key -> {row, record, cells}
  #body = h("tbody", { role: "rowgroup" });
  #table;

  /**
   * caption: what it shows, for screen readers.
   * columns: {label, tone?, key(record)?, cell(record)}; a cell is made anew where its key differs. A cell of a
   *   "fixed" column is made once and calls `record()` for what is known by then.
   * key: what a record is known by.
   * empty: [title, text] for where there is none.
   */
  constructor({ caption, columns, key, empty }) {
    this.#columns = columns;
    this.#key = key;
    this.#empty = empty;
    const heads = columns.map(({ label, tone }) => h("th", { role: "columnheader", scope: "col", class: tone }, label));
    this.#table = h(
      "table",
      { role: "table" },
      h("caption", { class: "unseen" }, caption),
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, heads)),
      this.#body,
    );
    this.element = h("div", { class: "table panel" });
  }

  update(records) {
    if (!records.length) {
      this.#rows.clear();
      this.#body.replaceChildren();
      fill(this.element, nothing(...this.#empty));
      return;
    }
    const keys = new Set();
    let place = this.#body.firstChild;
    for (const record of records) {
      const key = this.#key(record);
      if (keys.has(key)) continue;
      keys.add(key);
      const row = this.#rows.get(key) ?? this.#make(key);
      row.record = record;
      this.#show(row);
      if (row.element === place) place = place.nextSibling;
      else this.#body.insertBefore(row.element, place);
    }
    for (const [key, { element }] of this.#rows) {
      if (keys.has(key)) continue;
      element.remove();
      this.#rows.delete(key);
    }
    if (this.#table.parentNode !== this.element) fill(this.element, this.#table);
  }

  #make(key) {
    const row = { record: null, cells: [], element: null };
    row.cells = this.#columns.map(({ label, tone }) => ({
      element: h("td", { role: "cell", class: tone, "data-label": label }),
      key: undefined,
    }));
    row.element = h("tr", { role: "row" }, row.cells.map(({ element }) => element));
    this.#rows.set(key, row);
    return row;
  }

  #show(row) {
    this.#columns.forEach((column, index) => {
      const cell = row.cells[index];
      if (column.fixed) {
        if (cell.key === undefined) fill(cell.element, column.fixed(() => row.record));
        cell.key = "";
        return;
      }
      const shown = column.cell(row.record);
      const key = column.key ? String(column.key(row.record)) : String(shown);
      if (key === cell.key) return;
      cell.key = key;
      fill(cell.element, shown);
    });
  }
}
