// Hands: mouse, fingers, wheel and keys.

const at = (event) => {
  const pane = event.target.closest(".pane") || panes[1];
  const { left, top } = pane.getBoundingClientRect();
  return { x: event.clientX - left, y: event.clientY - top };
};

function pointAt(place, byMouse) {
  const { x, y } = toImage(place);
  const [column, row] = [Math.floor(x), Math.floor(y)];
  if (column < 0 || row < 0 || column >= data.width || row >= data.height) return;
  view.point = { x: column, y: row };
  view.byMouse = byMouse;
  redraw();
}

// ---- dragging, pinching, tapping ------------------------------------------------------------------------------------

const fingers = new Map();
let travelled = 0;
let tapped = { time: 0, x: 0, y: 0 };

for (const pane of panes) {
  pane.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    glide.token = null;
    pane.setPointerCapture(event.pointerId);
    if (!fingers.size) travelled = 0;
    fingers.set(event.pointerId, at(event));
  });
  pane.addEventListener("pointermove", (event) => {
    const now = at(event);
    const before = fingers.get(event.pointerId);
    if (before && fingers.size === 1) {
      travelled += Math.hypot(now.x - before.x, now.y - before.y);
      if (travelled > 4) move(now.x - before.x, now.y - before.y);
    } else if (before && fingers.size === 2) {
      const other = [...fingers].find(([id]) => id !== event.pointerId)[1];
      const spread = (a) => Math.max(Math.hypot(a.x - other.x, a.y - other.y), 1);
      const middle = (a) => ({ x: (a.x + other.x) / 2, y: (a.y + other.y) / 2 });
      travelled = Infinity;  // no tap
      zoomTo(view.scale * (spread(now) / spread(before)), middle(before));
      move(middle(now).x - middle(before).x, middle(now).y - middle(before).y);
    }
    if (before) fingers.set(event.pointerId, now);
    if (event.pointerType === "mouse") pointAt(now, true);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    pane.addEventListener(end, (event) => {
      const known = fingers.delete(event.pointerId);
      if (known && end === "pointerup" && !fingers.size && travelled <= 4) tap(event);
    });
  }
  pane.addEventListener("wheel", (event) => {
    event.preventDefault();
    glide.token = null;
    zoomTo(view.scale * Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0018)), at(event));
  }, { passive: false });
}

/** A tap puts the loupe there; two zoom in there, or back. */
function tap(event) {
  const place = at(event);
  const twice = event.timeStamp - tapped.time < 350 && Math.hypot(place.x - tapped.x, place.y - tapped.y) < 24;
  tapped = { time: twice ? 0 : event.timeStamp, ...place };
  pointAt(place, event.pointerType === "mouse");
  if (!twice) return;
  const zoomed = view.scale > fitScale() * 1.05;
  if (zoomed) fit();
  else zoomTo(Math.max(4 * fitScale(), 2), place);
}

// ---- the divider ---------------------------------------------------------------------------------------------------

const divider = $("divider");
divider.addEventListener("pointerdown", (event) => {
  divider.setPointerCapture(event.pointerId);
  divider.dataset.offset = event.clientX - (box().left + view.divider * box().width);
});
divider.addEventListener("pointermove", (event) => {
  if (divider.hasPointerCapture(event.pointerId)) {
    slide((event.clientX - divider.dataset.offset - box().left) / box().width);
  }
});
divider.addEventListener("keydown", (event) => {
  const step = event.shiftKey ? 0.1 : 0.02;
  const to = { ArrowLeft: view.divider - step, ArrowDown: view.divider - step, ArrowRight: view.divider + step,
               ArrowUp: view.divider + step, PageDown: view.divider - 0.1, PageUp: view.divider + 0.1, Home: 0, End: 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  event.stopPropagation();
  slide(to);
});

function slide(to) {
  view.divider = clamp(to, 0, 1);
  redraw();
}

// ---- holding for the reference -------------------------------------------------------------------------------------

function hold(held) {
  if (view.held === held) return;
  view.held = held;
  redraw();
}
$("hold").addEventListener("pointerdown", (event) => {
  $("hold").setPointerCapture(event.pointerId);
  hold(true);
});
for (const end of ["pointerup", "pointercancel", "blur"]) $("hold").addEventListener(end, () => hold(false));
$("hold").addEventListener("contextmenu", (event) => event.preventDefault());  // that of a long press
addEventListener("blur", () => hold(false));

// ---- keys ----------------------------------------------------------------------------------------------------------

const holds = (event) => event.key === " " || event.key.toLowerCase() === "r" || (event.key === "Enter" && event.target === $("hold"));
const busy = (event) => {  // the key belongs to what has the focus
  const native = event.target.closest?.("input, select, summary, a, button:not(#hold)");
  const letter = event.key.length === 1 && event.key !== " ";
  return native && !(letter && !native.matches("select"));
};
const PAN = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const KEYS = {
  s: () => choose("slider"), f: () => choose("flip"), b: () => choose("beside"), h: () => $("heat").click(),
  n: () => goTo(view.peak + 1), p: () => goTo(view.peak - 1), "]": () => show(view.image + 1), "[": () => show(view.image - 1),
  "+": () => zoomTo(view.scale * 1.25), "=": () => zoomTo(view.scale * 1.25), "-": () => zoomTo(view.scale / 1.25),
  0: fit, 1: () => zoomTo(1),
};

addEventListener("keydown", (event) => {
  if (document.body.inert || event.ctrlKey || event.metaKey || event.altKey || !$("shortcuts").checked || busy(event)) return;
  if (holds(event)) {
    event.preventDefault();
    hold(true);
    return;
  }
  const amid = document.activeElement === document.body || stage.contains(document.activeElement);
  if (PAN[event.key] && amid) {
    event.preventDefault();
    const step = Math.min(box().width, box().height) / 8;
    move(step * PAN[event.key][0], step * PAN[event.key][1]);
    settle();
    pointAt({ x: box().width / 2, y: box().height / 2 }, false);
    return;
  }
  const act = KEYS[event.key.toLowerCase()];
  if (act && !(event.repeat && event.key.toLowerCase() === "h")) {
    event.preventDefault();
    act();
  }
});
addEventListener("keyup", (event) => { if (holds(event)) hold(false); });
