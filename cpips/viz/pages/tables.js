"use strict";
// Without this script all is shown; tables do not sort, and of several panels all are open.

// ---- tables that sort ----------------------------------------------------------------------------------------------

for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => header.querySelector("button")?.addEventListener("click", () => {
    const other = { ascending: "descending", descending: "ascending" };
    const order = other[header.getAttribute("aria-sort")] || header.dataset.first;
    headers.forEach((each) => each.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const value = (row) => row.cells[column].dataset.value;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);  // absent ones stay below
      return sign * (column ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true }));
    });
    table.tBodies[0].append(...rows);
  }));
}

// ---- one panel of several ------------------------------------------------------------------------------------------

for (const control of document.querySelectorAll("[data-control]")) {
  const select = control.querySelector("select");
  const panels = [...document.getElementById(select.dataset.shows).children];
  const show = () => panels.forEach((panel, i) => { panel.hidden = i !== select.selectedIndex; });
  control.hidden = panels.length < 2;
  select.addEventListener("change", show);
  show();
}
