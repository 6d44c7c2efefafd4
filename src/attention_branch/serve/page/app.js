// The page: what is open, what is shown of it, and what every control does.

import * as api from "./api.js";
import { Drawing } from "./drawing.js";
import { EditedMap, extremes, fromRows, toRows, upsample } from "./map.js";
import { Lists } from "./lists.js";
import { colored, range, Stage, thumbnail } from "./stage.js";

const NAMES = { attention: "Attention", "attention-class": "Evidence", cam: "CAM", "grad-cam": "Grad-CAM",
  "grad-cam++": "Grad-CAM++", "layer-cam": "LayerCAM", "soft-masks": "Soft masks", rollout: "Rollout" };
const FINE = 224; // fewest fine places along a picture's longer side
const TOP = 5;

const $ = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)} %`;

let facts, colors;
let current = null; // the open image
const stage = new Stage($("stage"), $("frame"));
const drawing = new Drawing(stage, {
  get edited() { return current && !facts.question ? current.edited[current.slot] : null; },
  get factor() { return current.factor; },
  changed: (final) => changed(final),
  refused: () => facts.question && complain(facts.question),
});
const lists = new Lists(() => facts, { open: openListed, complain, said });

// --- messages ---

function complain(text) {
  $("message").textContent = text;
  $("message").hidden = !text;
}
function said(text) { $("said").textContent = text; }

async function attempt(work) {
  complain("");
  $("working").hidden = false;
  try {
    return await work();
  } catch (problem) {
    complain(problem.message);
    return null;
  } finally {
    $("working").hidden = true;
  }
}

// --- opening ---

async function openFile(file) {
  if (!mayLeave()) return;
  const reply = await attempt(() => api.openFile(file));
  if (reply) await shown(reply, {});
}

async function openListed(what) {
  if (!mayLeave()) return;
  const reply = await attempt(() => ("queue" in what ? api.openQueued(what.queue) : api.openSaved(what.saved)));
  if (!reply) return;
  await shown(reply, what);
  choose("look");
  $("stage").focus();
}

function mayLeave() {
  return !(current && current.dirty) || window.confirm("The map that you drew is not saved. Leave it?");
}

async function shown(reply, { queue = null, saved = null }) {
  const picture = await attempt(() => api.image(`/v1/images/${reply.id}/view.png`));
  if (!picture) return;
  const longer = Math.max(picture.naturalWidth, picture.naturalHeight);
  current = { id: reply.id, reply, picture, queue, saved, maps: {}, edited: {}, answers: {}, dirty: false,
    factor: Math.max(1, Math.ceil(FINE / longer)), head: headNames()[0], slot: null, method: facts.methods[0] };
  for (const map of reply.maps) {
    const own = fromRows(map.values), key = map.head ?? "label";
    current.maps[`attention|${key}`] = { map: own, reply: map };
    if (!facts.question) {
      const top = facts.map_range ? facts.map_range[1] : Math.max(extremes(own)[1], 1e-6);
      const size = [picture.naturalHeight * current.factor, picture.naturalWidth * current.factor];
      current.edited[key] = new EditedMap(own, ...size, top);
    }
  }
  history.replaceState(null, "", `#${saved ? `saved=${saved}` : queue !== null ? `queue=${queue}` : `image=${reply.id}`}`);
  $("drop").hidden = true;
  stage.cursor = stage.sketch = null;
  stage.show(picture);
  fillHead();
  if (saved) await loadSaved(saved);
  describe();
  await showLayer();
  said(`${reply.file} is open. ${$("prediction").textContent}, ${$("probability").textContent}.`);
  readAloud();
  showBeside();
}

async function loadSaved(name) {
  const drawn = await attempt(() => api.image(`/v1/annotations/${encodeURIComponent(name)}/view.png`));
  const edited = current.edited[current.slot];
  if (!drawn || !edited) return;
  const canvas = document.createElement("canvas");
  canvas.width = edited.width;
  canvas.height = edited.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(drawn, 0, 0, edited.width, edited.height);
  const { data } = context.getImageData(0, 0, edited.width, edited.height);
  edited.remember();
  edited.load(Uint8Array.from({ length: edited.drawn.length }, (_, i) => data[4 * i]));
  ask();
}

// --- which head, which class, which layer ---

const headNames = () => Object.keys(facts.classes);
const headQuery = () => (facts.multitask ? current.head : null);
const answerOf = (reply, head) => (reply.heads ? reply.heads[head] : reply);

function fillHead() {
  $("head-field").hidden = !facts.multitask;
  $("head").replaceChildren(...headNames().map((name) => new Option(name, name)));
  $("head").value = current.head;
  if (current.saved && current.reply.saved_head) $("head").value = current.head = current.reply.saved_head;
  fillClasses();
}

function fillClasses() {
  current.slot = current.edited[current.head] ? current.head : Object.keys(current.edited)[0] ?? null;
  const names = facts.classes[current.head], answer = answerOf(current.reply, current.head);
  const options = names.map((name, index) => new Option(name, index));
  $("class").replaceChildren(new Option(`${answer.prediction.class} (predicted)`, ""), ...options);
  $("label").replaceChildren(new Option("not known", ""), ...names.map((name) => new Option(name, name)));
  const known = current.reply.label?.[current.head];
  $("label").value = names.includes(known) ? known : "";
  $("truth").textContent = known ? `Labelled '${known}'.` : "";
}

function layerButtons() {
  $("layers").replaceChildren(...[...facts.methods, "picture"].map((method) => {
    const button = document.createElement("button");
    button.setAttribute("role", "radio");
    button.dataset.method = method;
    button.textContent = method === "picture" ? "Picture alone" : NAMES[method] ?? method;
    button.onclick = () => { if (current) { current.method = method; showLayer(); } };
    return button;
  }));
  radios($("layers"));
}

const wantsClass = (method) => !["attention", "soft-masks", "rollout", "picture"].includes(method);

async function mapOf(method) {
  const chosen = wantsClass(method) && $("class").value !== "" ? Number($("class").value) : null;
  const own = current.maps[`attention|${current.head}`] ?? current.maps["attention|label"];
  if (method === "attention" && own) return own;
  const key = `${method}|${current.head}|${chosen}`;
  if (!current.maps[key]) {
    const opened = current;
    const reply = await api.map(current.id, method, headQuery(), chosen);
    opened.maps[key] = { map: fromRows(reply.values), reply };
    return opened.maps[key];
  }
  return current.maps[key];
}

async function showLayer() {
  if (!current) return;
  const opened = current, method = current.method;
  check($("layers"), (button) => button.dataset.method === method);
  $("class-field").hidden = !wantsClass(method);
  if (method === "picture") {
    stage.lay(null);
    $("legend").hidden = true;
    return;
  }
  const found = await attempt(() => mapOf(method));
  if (!found || current !== opened || current.method !== method) return;
  paintLayer(found);
}

function paintLayer(found) {
  const edited = current.edited[current.slot];
  const mine = current.method === "attention" && edited?.edited && !$("compare").checked;
  const size = [current.picture.naturalHeight * current.factor, current.picture.naturalWidth * current.factor];
  const fine = mine ? edited.shown() : upsample(found.map, ...size);
  const scale = range(mine ? edited.shown() : found.map, found.reply.value_range, $("scale").value === "stretched");
  stage.lay(colored(fine, scale, colors, $("opacity").value / 100, true));
  showLegend(scale, found, mine);
}

function showLegend([low, high], { map, reply }, mine) {
  $("legend").hidden = false;
  $("legend-low").textContent = low.toFixed(2);
  $("legend-high").textContent = high.toFixed(2);
  const context = $("colors").getContext("2d"), strip = context.createImageData(256, 1);
  for (let i = 0; i < 256; i++) strip.data.set([...colors[Math.round(64 + i * 191 / 255)], 255], 4 * i);
  context.putImageData(strip, 0, 0);
  const [least, most] = extremes(map), kind = mine ? "your map" : NAMES[current.method] ?? current.method;
  const whose = reply.target ? ` for '${reply.target.class}'` : " (whatever the class)";
  $("legend-what").textContent = `${kind}${mine ? "" : whose}, ${map.h}×${map.w}` +
    (mine ? "" : `, from ${least.toFixed(2)} to ${most.toFixed(2)}`);
}

// --- the answer ---

function describe() {
  for (const card of ["answer-card", "trace-card", "beside-card"]) $(card).hidden = false;
  $("correct-card").hidden = Object.keys(current.edited).length === 0;
  $("tools").disabled = Boolean(facts.question);
  $("no-question").hidden = !facts.question;
  $("no-question").textContent = facts.question ?? "";
  $("skip").hidden = $("next").hidden = current.queue === null;
  $("saved-line").textContent = "";
  $("note").value = "";
  $("compare").checked = false;
  history_buttons();
  showAnswer();
  const { reply } = current, trace = [["picture", `${reply.file}, ${reply.width}×${reply.height}`],
    ["picture SHA-256", reply.image_sha256], ["model", reply.model], ["model SHA-256", reply.model_sha256],
    ["preprocessing", Object.entries(reply.preprocessing).map(([name, value]) => `${name} ${value}`).join(", ")],
    ["computed by", reply.engine],
    ["versions", Object.entries(reply.versions).map(([name, value]) => `${name} ${value}`).join(", ")],
    ["time", reply.time]];
  $("trace").replaceChildren(...trace.flatMap(([name, value]) => {
    const term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    return [term, text];
  }));
  $("record").href = `/v1/images/${current.id}/record`;
}

function showAnswer() {
  const before = answerOf(current.reply, current.head), after = current.answers[current.head] ?? null;
  $("prediction").textContent = before.prediction.class;
  $("probability").textContent = percent(before.prediction.probability);
  $("after-line").hidden = !after;
  if (after) {
    $("after-prediction").textContent = after.prediction.class;
    $("after-probability").textContent = percent(after.prediction.probability);
    $("after-line").classList.toggle("changed", after.prediction.index !== before.prediction.index);
  }
  showStrip(before, after);
  const indices = new Set(before.top.map((share) => share.index));
  if (after) after.top.slice(0, 3).forEach((share) => indices.add(share.index));
  const rows = [...indices].slice(0, 7).map((index) => {
    const row = document.createElement("tr"), name = document.createElement("th"), bars = document.createElement("td");
    name.textContent = facts.classes[current.head][index];
    name.scope = "row";
    const shares = [before.probabilities[index], ...(after ? [after.probabilities[index]] : [])];
    shares.forEach((share, which) => {
      const bar = document.createElement("div");
      bar.className = `share ${which ? "after" : "before"}`;
      bar.style.width = `${100 * share}%`;
      bars.append(bar);
    });
    const numbers = document.createElement("td");
    numbers.className = "number";
    numbers.textContent = shares.map(percent).join(" → ");
    row.append(name, bars, numbers);
    return row;
  });
  $("shares").tBodies[0].replaceChildren(...rows);
  document.querySelector(".key").hidden = !after;
}

// On a phone the card with the answer is far below the picture.
function showStrip(before, after) {
  const first = document.createElement("b");
  first.textContent = before.prediction.class;
  const parts = [first, ` ${percent(before.prediction.probability)}`];
  if (after) {
    const second = document.createElement("span");
    second.className = "after";
    second.textContent = `${after.prediction.class} ${percent(after.prediction.probability)}`;
    parts.push(" → ", second, " with your map");
  }
  $("strip").replaceChildren(...parts);
  $("strip").hidden = false;
}

async function readAloud() {
  const opened = current;
  $("reading-card").hidden = true;
  try {
    const { sentences } = await api.reading(current.id, headQuery());
    if (current !== opened) return;
    $("reading").replaceChildren(...sentences.map(({ text, verdict }) => {
      const item = document.createElement("li");
      item.textContent = text;
      item.className = verdict;
      return item;
    }));
    $("reading-card").hidden = false;
  } catch (problem) {
    complain(problem.message);
  }
}

async function showBeside() {
  const opened = current;
  $("beside").style.setProperty("--shape", `${current.picture.naturalWidth} / ${current.picture.naturalHeight}`);
  $("beside").replaceChildren();
  for (const method of facts.methods.slice(0, 6)) {
    let found;
    try {
      found = await mapOf(method);
    } catch {
      continue; // the layer itself says why when it is chosen
    }
    if (current !== opened) return;
    const button = document.createElement("button"), canvas = document.createElement("canvas");
    thumbnail(canvas, current.picture, found.map, found.reply.value_range, false, colors);
    const name = NAMES[method] ?? method;
    button.append(canvas, found.reply.target ? `${name}: ${found.reply.target.class}` : name);
    button.onclick = () => { current.method = method; showLayer(); };
    $("beside").append(button);
  }
}

// --- questions ---

let asking = false, again = false;

function changed(final) {
  current.dirty = true;
  if (current.method !== "attention") {
    current.method = "attention";
    check($("layers"), (button) => button.dataset.method === "attention");
    $("class-field").hidden = true;
  }
  if ($("compare").checked) $("compare").checked = false;
  window.cancelAnimationFrame(changed.frame);
  changed.frame = window.requestAnimationFrame(async () => paintLayer(await mapOf("attention")));
  if (final) history_buttons();
  ask();
}

// One question at a time; what was drawn meanwhile is asked when the answer is here.
async function ask() {
  if (asking) {
    again = true;
    return;
  }
  asking = true;
  const opened = current, maps = {};
  for (const [head, edited] of Object.entries(opened.edited)) if (edited.edited) maps[head] = toRows(edited.coarse());
  const begun = performance.now();
  try {
    if (Object.keys(maps).length === 0) opened.answers = {};
    else {
      const reply = await api.ask(opened.id, maps, TOP);
      opened.answers = reply.heads ?? { [headNames()[0]]: reply };
    }
    if (current === opened) {
      $("stroke-time").textContent = Object.keys(maps).length ? `${Math.round(performance.now() - begun)} ms` : "";
      showAnswer();
      const after = opened.answers[opened.head];
      if (after) said(`With your map: ${after.prediction.class}, ${percent(after.prediction.probability)}.`);
    }
  } catch (problem) {
    if (problem.status === 404) await reopen(opened);
    else complain(problem.message);
  } finally {
    asking = false;
    if (again && current) {
      again = false;
      ask();
    }
  }
}

// The server keeps the last images only, and none when it was started anew: send the picture again.
async function reopen(opened) {
  if (opened !== current) return;
  const reply = opened.queue !== null ? await attempt(() => api.openQueued(opened.queue))
    : opened.file ? await attempt(() => api.openFile(opened.file)) : null;
  if (!reply) {
    complain("The server does not have this image any more; open it again. What you drew is still here.");
    return;
  }
  opened.id = reply.id;
  $("record").href = `/v1/images/${reply.id}/record`;
  again = true;
}

function history_buttons() {
  const edited = current?.edited[current.slot];
  $("undo").disabled = !edited?.past.length;
  $("redo").disabled = !edited?.future.length;
  $("reset").disabled = !edited?.edited;
  $("save").disabled = !edited;
}

function edit(work) {
  const edited = current?.edited[current.slot];
  if (!edited || facts.question) return;
  work(edited);
  changed(true);
}

// --- correcting ---

async function save() {
  const edited = current.edited[current.slot];
  const canvas = document.createElement("canvas");
  canvas.width = edited.width;
  canvas.height = edited.height;
  const image = new ImageData(edited.width, edited.height), { values } = edited.shown();
  values.forEach((value, i) => {
    const level = Math.round(255 * Math.min(1, value / edited.top));
    image.data.set([level, level, level, 255], 4 * i);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
  const label = $("label").value || null;
  const wanted = { map: canvas.toDataURL("image/png"), note: $("note").value, shapes: edited.shapes.slice(-200),
    label: label && facts.multitask ? { [current.head]: label } : label,
    head: facts.multitask && Object.keys(current.edited).length > 1 ? current.head : null };
  const opened = current, reply = await attempt(() => api.annotate(current.id, wanted));
  if (!reply || opened !== current) return;
  opened.dirty = false;
  $("saved-line").textContent = `Saved as ${reply.name}.`;
  said("The map is saved.");
}

// --- controls ---

function check(group, wanted) {
  for (const button of group.querySelectorAll("[role=radio]")) {
    const on = wanted(button);
    button.setAttribute("aria-checked", String(on));
    button.tabIndex = on ? 0 : -1;
  }
}

// Arrow keys walk through a group of radio buttons, as browsers do for their own.
function radios(group) {
  group.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const buttons = [...group.querySelectorAll("button")], at = buttons.indexOf(document.activeElement);
    const next = buttons[(at + step + buttons.length) % buttons.length];
    event.preventDefault();
    next.focus();
    next.click();
  };
}

function choose(view) {
  for (const name of ["look", "queue", "saved"]) {
    const on = name === view, tab = $(`tab-${name}`);
    $(`view-${name}`).hidden = !on;
    tab.setAttribute("aria-selected", String(on));
    tab.tabIndex = on ? 0 : -1;
  }
  if (view === "queue") lists.refreshQueue();
  if (view === "saved") lists.refreshSaved();
}

function setMode(mode) {
  drawing.mode = mode;
  check($("modes"), (button) => button.dataset.mode === mode);
}
function setShape(shape) {
  drawing.choose(shape);
  check($("shapes"), (button) => button.dataset.shape === shape);
}
function setSize(size) {
  $("size").value = size;
  drawing.size = Number($("size").value);
}

const undo = () => edit((edited) => edited.undo()), redo = () => edit((edited) => edited.redo());
const invert = () => edit((edited) => { edited.remember(); edited.invert(); });
const clear = () => edit((edited) => { edited.remember(); edited.clear(); });

function keys(event) {
  if (event.target.closest("input:not([type=range]), select, textarea")) return;
  const key = event.key.toLowerCase();
  if ((event.ctrlKey || event.metaKey) && (key === "z" || key === "y")) {
    event.preventDefault();
    if (key === "y" || event.shiftKey) redo(); else undo();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || $("view-look").hidden || !current) return;
  const work = { a: () => setMode("add"), e: () => setMode("erase"), b: () => setShape("brush"),
    x: () => setShape("box"), p: () => setShape("polygon"), i: invert, c: clear,
    "[": () => setSize(drawing.size - 2), "]": () => setSize(drawing.size + 2),
    "+": () => stage.zoomBy(1.25), "=": () => stage.zoomBy(1.25), "-": () => stage.zoomBy(0.8), 0: () => stage.fit(),
  }[key];
  if (work) {
    event.preventDefault();
    work();
  }
}

function wire() {
  $("file").onchange = (event) => {
    const [file] = event.target.files;
    if (file) openFile(file).then(() => { if (current && current.queue === null) current.file = file; });
    event.target.value = "";
  };
  const frame = $("frame");
  document.addEventListener("dragover", (event) => { event.preventDefault(); frame.classList.add("over"); });
  document.addEventListener("dragleave", () => frame.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    frame.classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (file) openFile(file).then(() => { choose("look"); if (current && current.queue === null) current.file = file; });
  });
  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData.files;
    if (file) openFile(file);
  });
  for (const name of ["look", "queue", "saved"]) $(`tab-${name}`).onclick = () => choose(name);
  radios(document.querySelector("header nav"));
  for (const group of ["modes", "shapes"]) radios($(group));
  for (const button of $("modes").children) button.onclick = () => setMode(button.dataset.mode);
  for (const button of $("shapes").children) button.onclick = () => setShape(button.dataset.shape);
  check($("modes"), (button) => button.dataset.mode === "add");
  check($("shapes"), (button) => button.dataset.shape === "brush");
  $("size").oninput = (event) => setSize(event.target.value);
  $("undo").onclick = undo;
  $("redo").onclick = redo;
  $("invert").onclick = invert;
  $("clear").onclick = clear;
  $("reset").onclick = () => edit((edited) => { edited.remember(); edited.reset(); });
  $("compare").onchange = showLayer;
  $("opacity").oninput = showLayer;
  $("scale").onchange = showLayer;
  $("class").onchange = () => { showLayer(); showBeside(); };
  $("head").onchange = (event) => {
    current.head = event.target.value;
    fillClasses();
    showAnswer();
    history_buttons();
    showLayer();
    readAloud();
    showBeside();
  };
  $("zoom-in").onclick = () => stage.zoomBy(1.25);
  $("zoom-out").onclick = () => stage.zoomBy(0.8);
  $("zoom-fit").onclick = () => stage.fit();
  stage.onZoom = (zoom) => { $("zoom").textContent = `${Math.round(100 * zoom)} %`; };
  $("save").onclick = save;
  $("skip").onclick = async () => {
    await attempt(() => api.mark(current.queue, "skipped"));
    openNext();
  };
  $("next").onclick = openNext;
  $("stage").addEventListener("keydown", (event) => {
    if (drawing.key(event)) {
      event.preventDefault();
      event.stopPropagation();
    }
  });
  document.addEventListener("keydown", keys);
  window.addEventListener("beforeunload", (event) => { if (current?.dirty) event.preventDefault(); });
}

async function openNext() {
  if (!mayLeave()) return;
  current.dirty = false;
  const next = await attempt(() => lists.next(current.queue));
  if (next === null) said("There is no further picture.");
  else openListed({ queue: next });
}

// After a reload the address says what was open.
async function resume() {
  const [kind, value] = location.hash.slice(1).split("=");
  if (kind === "queue" && facts.queue) await openListed({ queue: Number(value) });
  else if (kind === "saved") await openListed({ saved: decodeURIComponent(value) });
  else if (kind === "image") {
    try {
      await shown(await api.opened(value), {});
    } catch {
      complain("The picture that was open is not on the server any more; open it again.");
    }
  }
}

async function main() {
  const begun = await attempt(api.start);
  if (!begun) return;
  facts = { ...begun.model, queue: begun.queue, annotations: begun.annotations };
  colors = begun.colors;
  document.title = `${facts.name}: attention-branch`;
  const how = { residual: "features weighted by 1 + map", product: "features weighted by the map",
    none: "map not applied" }[facts.mechanism] ?? "no attention branch";
  $("model").textContent = `${facts.name} from ${facts.source}; ${how}`;
  const quoted = (text) => (/^[\w./:=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
  $("train-command").textContent = `abn train --from ${quoted(facts.source)} --annotations ${quoted(facts.annotations)}`;
  layerButtons();
  wire();
  history_buttons();
  lists.begin();
  await resume();
}

main();
