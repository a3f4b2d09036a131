"use strict";
// Without this script all is shown and nothing is lost but sorting, choosing and names on points.

// ---- tables that sort ----------------------------------------------------------------------------------------------

for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => header.querySelector("button").addEventListener("click", () => {
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

// ---- names on points -----------------------------------------------------------------------------------------------

const tip = document.getElementById("tip");

function tell(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - width - 8))}px`;
  tip.style.top = `${y + 18 + height > innerHeight ? y - height - 12 : y + 18}px`;
}

const silent = () => { tip.hidden = true; };

document.addEventListener("pointermove", (event) => {
  const mark = event.target.closest && event.target.closest("[data-tip]");
  if (mark) tell(mark.dataset.tip, event.clientX, event.clientY);
  else if (!event.target.closest || !event.target.closest("svg.scatter")) silent();
});
function tellOfFocus() {
  const { right, top } = document.activeElement.getBoundingClientRect();
  if (document.activeElement.dataset.tip) tell(document.activeElement.dataset.tip, right, top);
  else silent();
}
document.addEventListener("focusin", tellOfFocus);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") silent(); });
document.addEventListener("scroll", tellOfFocus, { passive: true });  // focus may have scrolled there

for (const box of document.querySelectorAll("[data-scatter]")) {
  const names = [...box.querySelectorAll(".legend button")].map((button) => button.firstChild.nextSibling.data.trim());
  const shared = JSON.parse(box.querySelector(":scope > script.ids").textContent);
  let only = null;  // the group that is brought out

  for (const svg of box.querySelectorAll("svg.scatter")) {
    const own = svg.parentNode.querySelector("script.ids");
    const ids = own ? JSON.parse(own.textContent) : shared;
    const scale = svg.querySelector(".points").dataset.scale.split(" ").map(Number);
    const [x0, x1, left, right, y0, y1, bottom, top] = scale;
    let points = null;  // parsed when first pointed at
    const parse = () => [...svg.querySelectorAll("path[data-group]")].flatMap((path) =>
      [...(path.getAttribute("d") || "").matchAll(/M(-?[\d.]+) (-?[\d.]+)/g)].map((m, i) =>
        ({ x: Number(m[1]), y: Number(m[2]), group: Number(path.dataset.group), i })));
    svg.addEventListener("pointermove", (event) => {
      points = points || parse();
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      let nearest = null, reach = 100;  // 10 px
      for (const p of points) {
        const far = (p.x - at.x) ** 2 + (p.y - at.y) ** 2;
        if (far < reach && (only === null || only === p.group)) { nearest = p; reach = far; }
      }
      if (!nearest) return silent();
      const distance = x0 + (nearest.x - left) / (right - left) * (x1 - x0);
      const opinion = y0 + (nearest.y - bottom) / (top - bottom) * (y1 - y0);
      tell(`${ids[nearest.group][nearest.i]}\n${names[nearest.group]}\ndistance ${distance.toPrecision(3)}, ` +
           `opinion ${opinion.toPrecision(3)}`, event.clientX, event.clientY);
    });
    svg.addEventListener("pointerleave", silent);
  }

  for (const button of box.querySelectorAll(".legend button")) button.addEventListener("click", () => {
    only = button.getAttribute("aria-pressed") === "true" ? null : Number(button.dataset.group);
    for (const each of box.querySelectorAll("[data-group]")) {
      const chosen = Number(each.dataset.group) === only;
      if (each.tagName === "BUTTON") each.setAttribute("aria-pressed", String(chosen));
      else {
        each.classList.toggle("dim", only !== null && !chosen);
        if (chosen) each.parentNode.append(each);  // on top of the others
      }
    }
  });
}
