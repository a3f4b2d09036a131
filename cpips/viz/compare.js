// The page: images in, the viewer of `cpips view` out. The viewer is a page of its own, in a frame; it can be saved.

const $ = (id) => document.getElementById(id);
const shell = JSON.parse($("shell").textContent);
const slots = { reference: $("reference"), images: $("images") };
const SHORT = 200;  // characters of a file's name
let chosen = { reference: null, images: [] };  // files
let page = "";  // the viewer's, as text
let turn = 0;  // of the last request: what older ones find is dropped

// ---- workers -------------------------------------------------------------------------------------------------------

const source = URL.createObjectURL(new Blob([$("worker").textContent], { type: "text/javascript" }));
const waiting = new Map();
const workers = [0, 1].map(() => {
  const worker = new Worker(source);
  worker.onmessage = ({ data: { id, done, failed } }) => {
    const [resolve, reject] = waiting.get(id);
    waiting.delete(id);
    if (failed === undefined) resolve(done);
    else reject(new Error(failed));
  };
  worker.onerror = (event) => {
    event.preventDefault();
    for (const [, reject] of waiting.values()) reject(new Error(`this browser cannot run the page (${event.message || "no worker"})`));
    waiting.clear();
  };
  return worker;
});

function ask(task, given = {}, worker = 0) {
  const id = ask.count = (ask.count ?? 0) + 1;
  return new Promise((resolve, reject) => {
    waiting.set(id, [resolve, reject]);
    workers[worker % workers.length].postMessage({ id, task, ...given });
  });
}

const encoded = new WeakMap();  // by file: a reference that stays is encoded once
function encode(file, worker) {
  const background = $("background").value || null;
  const known = encoded.get(file);
  if (known?.background === background) return known.result;
  const result = ask("encode", { file, name: nameOf(file), background }, worker);
  encoded.set(file, { background, result });
  result.catch(() => encoded.delete(file));
  return result;
}

// ---- from files to the viewer --------------------------------------------------------------------------------------

/** A name with a question mark for what cannot be printed, or would turn the text around it. */
const nameOf = (file) => (file.name || "pasted image").slice(0, SHORT).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "?");
const short = (value) => {
  if (value && Math.abs(value) < 1e-4) return value.toExponential(3).replace(/e([+-])(\d)$/, "e$10$2");
  return value.toPrecision(4);
};
const significant = (value) => Number(value.toPrecision(3));
const dataUri = (blob) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(new Error("an image cannot be shown: it is too large for this browser"));
  reader.readAsDataURL(blob);
});
const escaped = (text) => text.replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);

async function measure() {
  const mine = turn += 1;
  const current = () => mine === turn;
  show();
  if (!chosen.reference && !chosen.images.length) return;
  document.body.dataset.busy = "";
  $("status").textContent = "Reading and encoding …";
  try {
    const files = [chosen.reference, ...chosen.images];
    const found = await Promise.all(files.map((file, i) => file && encode(file, i)));
    if (!current()) return;
    drawSlots(found);
    if (!files[0] || files.length < 2) {
      $("status").textContent = files[0] ? "Now choose an image to compare with it." : "Now choose the reference.";
      return;
    }
    const rows = await Promise.all(found.slice(1).map(({ embedding }, i) => ask("compare", { reference: found[0].embedding, image: embedding }, i)));
    const uris = await Promise.all(found.map(({ png }) => dataUri(png)));
    if (current()) present(files.map(nameOf), found, rows, uris);
  } catch (error) {
    if (!current()) return;
    $("status").textContent = "";
    $("error").textContent = error.message;
    $("error").hidden = false;
  } finally {
    if (current()) delete document.body.dataset.busy;
  }
}

function present(names, found, rows, uris) {
  const { width, height } = found[0].embedding;
  const metric = { name: facts.name, signature: rows[0].signature, lower: true, vmax: Math.max(...rows.map(({ vmax }) => vmax)) };
  const content = {
    ...shell.content, width, height, reference: { name: names[0], uri: uris[0] }, metrics: [metric],
    images: rows.map((row, i) => ({
      name: names[i + 1], uri: uris[i + 1], values: [short(row.distance)], order: [row.distance],
      grade: row.quality === undefined ? "" : `quality ${row.quality.toFixed(2)}, ${row.words}`,
      maps: [{ columns: row.columns, cells: row.cells.map(significant), peaks: row.peaks.map((peak) => ({ ...peak, text: short(peak.value) })) }],
    })),
  };
  const data = JSON.stringify(content).replaceAll("<", "\\u003c");
  page = shell.page.split("\0").map((part, i) => part + ["", `${escaped(names[0])} – cpips view`, data, ""][i + 1]).join("");
  const frame = document.createElement("iframe");
  frame.title = "The images, their distances and differences";
  frame.srcdoc = page;
  $("result").replaceChildren(frame);
  $("result").hidden = false;
  $("empty").hidden = true;
  $("save").disabled = false;
  const seconds = found.reduce((sum, each) => sum + each.seconds, 0) + rows.reduce((sum, row) => sum + row.seconds, 0);
  const [row] = rows;
  const seen = rows.map(({ visibility }, i) => `${Math.round(100 * visibility)}${i ? "" : " of 100 people see a difference"} in ${names[i + 1]}`);
  const people = row.visibility === undefined ? "" : `${seen.join(", ")}. `;
  $("status").textContent = `${people}${width} × ${height} px, computed in ${seconds.toFixed(2)} s.`;
  document.body.dataset.shown = turn;
  Object.assign(document.body.dataset, { distance: row.distance, quality: row.quality, visibility: row.visibility, words: row.words });
}

/** What stands before anything is found. */
function show() {
  $("error").hidden = true;
  $("error").textContent = "";
  $("result").replaceChildren();
  $("result").hidden = true;
  $("empty").hidden = false;
  $("save").disabled = true;
  $("swap").disabled = !chosen.reference || chosen.images.length !== 1;
  $("clear").disabled = !chosen.reference && !chosen.images.length;
  $("status").textContent = "";
  delete document.body.dataset.busy;
  delete document.body.dataset.shown;
  drawSlots([]);
}

const hints = Object.fromEntries(Object.keys(slots).map((name) => [name, $(`${name}-hint`).textContent]));

function drawSlots(found) {
  const shown = { reference: [chosen.reference, found[0]], images: [chosen.images[0], found[1]] };
  for (const [slot, [file, result]] of Object.entries(shown)) {
    const more = slot === "images" && chosen.images.length > 1 ? ` and ${chosen.images.length - 1} more` : "";
    const size = result ? `, ${result.embedding.width} × ${result.embedding.height} px` : "";
    $(`${slot}-hint`).textContent = file ? `${nameOf(file)}${more}${size}` : hints[slot];
    slots[slot].classList.toggle("filled", Boolean(file));
    const canvas = slots[slot].querySelector("canvas");
    canvas.hidden = !result;
    if (!result) continue;
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(result.thumb, 0, 0);
  }
}

// ---- choosing ------------------------------------------------------------------------------------------------------

/** Files for a slot, or for the page: the first of several is the reference where there is none. */
function take(files, slot = null) {
  const [first, ...others] = files;
  if (!first) return;
  if (slot === "images" || (!slot && chosen.reference)) chosen.images = [...files];
  else chosen = { reference: first, images: others.length ? others : chosen.images };
  measure();
}

for (const [name, slot] of Object.entries(slots)) {
  const input = slot.querySelector("input");
  input.addEventListener("change", () => {
    take([...input.files], name);
    input.value = "";  // the same file again is a change, too
  });
  slot.addEventListener("dragover", () => slot.classList.add("over"));
  slot.addEventListener("dragleave", () => slot.classList.remove("over"));
}
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  for (const slot of Object.values(slots)) slot.classList.remove("over");
  take([...event.dataTransfer.files], event.target.closest?.(".slot")?.id ?? null);
});
addEventListener("paste", (event) => take([...event.clipboardData.files]));
$("background").addEventListener("change", measure);
$("swap").addEventListener("click", () => {
  chosen = { reference: chosen.images[0], images: [chosen.reference] };
  measure();
});
$("clear").addEventListener("click", () => {
  chosen = { reference: null, images: [] };
  measure();
});
$("save").addEventListener("click", () => {
  const link = Object.assign(document.createElement("a"), { download: "cpips-view.html", href: URL.createObjectURL(new Blob([page], { type: "text/html" })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
});

let facts = { name: "cpips" };
ask("facts").then((found) => {
  facts = found;
  $("signature").textContent = found.signature;
  document.body.dataset.ready = "";
}, (error) => {
  $("error").textContent = error.message;
  $("error").hidden = false;
});
