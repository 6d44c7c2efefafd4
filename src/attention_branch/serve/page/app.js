// The page: what is open, what is shown of it, what is asked and saved.

import * as api from "./api.js";
import { answerOf, percent, showAnswer, showReading, showTrace } from "./answer.js";
import { choose, wire } from "./controls.js";
import { Drawing } from "./drawing.js";
import { Layers } from "./layers.js";
import { Lists } from "./lists.js";
import { EditedMap, extremes, fromRows, toRows } from "./map.js";
import { Stage } from "./stage.js";

const FINE = 224; // fewest fine places along a picture's longer side
const TOP = 5;

const $ = (id) => document.getElementById(id);

let facts, colors;
let current = null; // the open image
const turns = {}; // the latest of each kind of request: an older one's answer comes too late

const stage = new Stage($("stage"), $("frame"));
const drawing = new Drawing(stage, {
  get edited() { return current && !facts.question ? current.edited[current.slot] ?? null : null; },
  get factor() { return current.factor; },
  changed: (final) => changed(final),
  refused: () => facts.question && complain(facts.question),
});
const layers = new Layers(stage, {
  get current() { return current; },
  get facts() { return facts; },
  get colors() { return colors; },
  attempt: (work) => attempt(work),
  ofImage: (work) => ofImage(work),
  begin: (kind) => begin(kind),
});
const lists = new Lists(() => facts, { open: openListed, complain, said });

function complain(text) {
  $("message").textContent = text;
  $("message").hidden = !text;
}
function said(text) { $("said").textContent = text; }

// Whether what began with this number is still the latest of its kind.
function begin(kind) {
  const turn = turns[kind] = (turns[kind] ?? 0) + 1, opened = current;
  return () => turns[kind] === turn && current === opened;
}

let working = 0;
async function attempt(work) {
  complain("");
  $("working").hidden = ++working === 0;
  try {
    return await work();
  } catch (problem) {
    complain(problem.message);
    return null;
  } finally {
    $("working").hidden = --working === 0;
  }
}

// --- opening ---

const dirty = () => current !== null
  && (current.words || [...current.unsaved].some((slot) => current.edited[slot].edited));
const mayLeave = () => !dirty() || window.confirm("What you drew or chose is not saved. Leave it?");

// `agreed`: the person was asked already whether what is unsaved may go.
async function open(request, from, agreed = false) {
  if (!agreed && !mayLeave()) return;
  const before = current, version = current?.version, latest = begin("open");
  const found = await attempt(async () => {
    const reply = await request();
    if (!latest()) return null;
    const saved = reply.saved && `/v1/annotations/${encodeURIComponent(reply.saved.name)}/view.png`;
    const addresses = [`/v1/images/${reply.id}/view.png`, ...(saved ? [saved] : [])];
    const [picture, drawn] = await Promise.all(addresses.map((address) => api.image(address)));
    return { reply, picture, drawn };
  });
  // Somebody may have gone on drawing meanwhile.
  if (!found || !latest() || (before && before.version !== version && !mayLeave())) return;
  await attempt(() => shown(found, from));
}

const openFile = (file) => open(() => api.openFile(file), { file });
function openListed(what, agreed) {
  return open(() => ("queue" in what ? api.openQueued(what.queue) : api.openSaved(what.saved)), what, agreed);
}
const askedAgain = ({ file, queue, saved }) => (file ? () => api.openFile(file)
  : queue !== undefined ? () => api.openQueued(queue) : saved !== undefined ? () => api.openSaved(saved) : null);

function remember() {
  const { saved, queue } = current.from;
  const what = saved !== undefined ? `saved=${encodeURIComponent(saved)}` : queue !== undefined ? `queue=${queue}`
    : `image=${current.id}`;
  history.replaceState(null, "", `#${what}`);
}

// Annotations come from other programs and networks too: heads and classes that this one lacks are left out.
const knownHead = (saved) => (facts.multitask && headNames().includes(saved?.head) ? saved.head : null);
const knownLabels = (label) => Object.fromEntries(
  Object.entries(label ?? {}).filter(([head, name]) => facts.classes[head]?.includes(name)));

async function shown({ reply, picture, drawn }, from) {
  drawing.forget();
  window.clearTimeout(retry);
  const longer = Math.max(picture.naturalWidth, picture.naturalHeight);
  current = { id: reply.id, reply, picture, from, maps: {}, edited: {}, answers: {}, unsaved: new Set(), words: false,
    version: 0, labels: knownLabels(reply.label), factor: Math.max(1, Math.ceil(FINE / longer)),
    head: knownHead(reply.saved) ?? headNames()[0], slot: null, method: facts.methods[0] ?? "picture" };
  for (const map of reply.maps) {
    const own = fromRows(map.values), key = map.head ?? "label";
    current.maps[`attention|${key}`] = { map: own, reply: map };
    if (!facts.question) {
      const top = facts.map_range ? facts.map_range[1] : Math.max(extremes(own)[1], 1e-6);
      const size = [picture.naturalHeight * current.factor, picture.naturalWidth * current.factor];
      current.edited[key] = new EditedMap(own, ...size, top);
    }
  }
  remember();
  choose("look");
  $("drop").hidden = true;
  stage.cursor = null;
  stage.show(picture);
  $("head-field").hidden = !facts.multitask;
  $("head").replaceChildren(...headNames().map((name) => new Option(name, name)));
  $("head").value = current.head;
  fillClasses();
  describe();
  if (drawn) laySaved(reply.saved, drawn);
  await layers.show();
  said(`${reply.file} is open. ${$("prediction").textContent}, ${$("probability").textContent}.`);
  readAloud();
  layers.beside();
}

function laySaved(saved, drawn) {
  $("note").value = typeof saved.note === "string" ? saved.note : "";
  const head = knownHead(saved), slots = head !== null && current.edited[head] ? [head] : Object.keys(current.edited);
  for (const edited of slots.map((slot) => current.edited[slot])) {
    const canvas = document.createElement("canvas");
    canvas.width = edited.width;
    canvas.height = edited.height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(drawn, 0, 0, edited.width, edited.height);
    const { data } = context.getImageData(0, 0, edited.width, edited.height);
    edited.remember();
    const shapes = Array.isArray(saved.shapes) ? saved.shapes : [];
    edited.load(Uint8Array.from({ length: edited.drawn.length }, (_, i) => data[4 * i]), shapes);
  }
  historyButtons();
  ask();
}

// --- which head, which class, which layer ---

const headNames = () => Object.keys(facts.classes);
const headQuery = () => (facts.multitask ? current.head : null);

function fillClasses() {
  current.slot = current.edited[current.head] ? current.head : Object.keys(current.edited)[0] ?? null;
  const names = facts.classes[current.head], answer = answerOf(current.reply, current.head);
  const options = names.map((name, index) => new Option(name, index));
  $("class").replaceChildren(new Option(`${answer.prediction.class} (predicted)`, ""), ...options);
  $("label").replaceChildren(new Option("not known", ""), ...names.map((name) => new Option(name, name)));
  const told = current.reply.label?.[current.head];
  $("label").value = current.labels[current.head] ?? "";
  $("truth").textContent = !told ? "" : names.includes(told) ? `Labelled '${told}'.`
    : `Labelled '${told}', a class that this network does not have.`;
}

// --- the answer ---

function describe() {
  for (const card of ["answer-card", "trace-card", "beside-card"]) $(card).hidden = false;
  $("reading-card").hidden = true;
  $("beside").replaceChildren();
  $("correct-card").hidden = Object.keys(current.edited).length === 0;
  $("tools").disabled = Boolean(facts.question);
  $("no-question").hidden = !facts.question;
  $("no-question").textContent = facts.question ?? "";
  $("onward").hidden = current.from.queue === undefined;
  $("saved-line").textContent = "";
  $("note").value = "";
  $("compare").checked = false;
  historyButtons();
  refreshAnswer();
  showTrace(current.reply);
}

const refreshAnswer = () => showAnswer(
  facts.classes[current.head], answerOf(current.reply, current.head), current.answers[current.head] ?? null);

async function readAloud() {
  const latest = begin("reading");
  $("reading-card").hidden = true;
  try {
    const { sentences } = await ofImage((id) => api.reading(id, headQuery()));
    if (latest()) showReading(sentences);
  } catch (problem) {
    if (latest()) complain(problem.message);
  }
}

// --- questions ---

let asking = false, again = false, retry = 0;

function changed(final) {
  current.version += 1;
  current.unsaved.add(current.slot);
  $("saved-line").textContent = "";
  if (current.method !== "attention") {
    current.method = "attention";
    layers.mark();
  }
  $("compare").checked = false;
  const latest = begin("layer"); // another layer's map that is on its way would cover this one
  window.cancelAnimationFrame(changed.frame);
  changed.frame = window.requestAnimationFrame(async () => {
    const found = await layers.mapOf("attention");
    if (latest()) layers.paint(found);
  });
  if (final) historyButtons();
  ask();
}

// One question at a time; what was drawn meanwhile is asked when the answer is here.
async function ask() {
  if (asking) {
    again = true;
    return;
  }
  asking = true;
  window.clearTimeout(retry);
  const opened = current, maps = {};
  for (const [head, edited] of Object.entries(opened.edited)) if (edited.edited) maps[head] = toRows(edited.coarse());
  const begun = performance.now(), some = Object.keys(maps).length > 0;
  try {
    const reply = some ? await ofImage((id) => api.ask(id, maps, TOP)) : null;
    opened.answers = reply ? reply.heads ?? { [headNames()[0]]: reply } : {};
    if (current === opened) {
      complain("");
      $("stroke-time").textContent = some ? `${Math.round(performance.now() - begun)} ms` : "";
      refreshAnswer();
      const after = opened.answers[opened.head];
      if (after) said(`With your map: ${after.prediction.class}, ${percent(after.prediction.probability)}.`);
    }
  } catch (problem) {
    if (current === opened) {
      complain(problem.message);
      if (problem.status === 503) {
        again = false; // what was drawn meanwhile waits too
        retry = window.setTimeout(() => current === opened && ask(), 2000);
      }
    }
  } finally {
    asking = false;
    if (again && current) {
      again = false;
      ask();
    }
  }
}

// Ask something of the open image. The server keeps the last images only, and none when it was started anew: where it
// has dropped this one, send the picture again and ask once more.
async function ofImage(work, opened = current) {
  try {
    return await work(opened.id);
  } catch (problem) {
    if (problem.status !== 404 || current !== opened) throw problem;
    opened.reopening ??= reopen(opened).finally(() => { opened.reopening = null; });
    await opened.reopening;
    return work(opened.id);
  }
}

async function reopen(opened) {
  const request = askedAgain(opened.from), kept = "What you drew is still here.";
  const gone = new Error(`The server does not have this image any more; open it again. ${kept}`);
  if (!request) throw gone;
  const reply = await request().catch((problem) => {
    throw [404, 422].includes(problem.status) ? gone : problem;
  });
  const { image_sha256: image, model_sha256: model } = opened.reply;
  if (reply.image_sha256 !== image || reply.model_sha256 !== model) {
    throw new Error(`The server has another ${reply.image_sha256 !== image ? "picture" : "network"} in this place now; `
      + `reload the page. ${kept}`);
  }
  opened.id = reply.id;
  if (current === opened) remember();
}

// A link alone would fail in silence.
async function download() {
  const found = await attempt(() => ofImage((id) => api.record(id)));
  if (!found) return;
  const link = document.createElement("a"), address = URL.createObjectURL(found.content);
  link.href = address;
  link.download = found.name;
  link.click();
  window.setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

function historyButtons() {
  const edited = current?.edited[current.slot];
  $("undo").disabled = !edited?.past.length;
  $("redo").disabled = !edited?.future.length;
  $("reset").disabled = !edited?.edited;
  $("save").disabled = !edited;
}

// Change the map; `work` returns false where there was nothing to do.
function edit(work) {
  const edited = current?.edited[current.slot];
  if (edited && !facts.question && work(edited) !== false) changed(true);
}
const kept = (work) => () => edit((edited) => { edited.remember(); work(edited); });

// --- correcting ---

function drawnPicture(edited) {
  const canvas = document.createElement("canvas");
  canvas.width = edited.width;
  canvas.height = edited.height;
  const image = new ImageData(edited.width, edited.height), { values } = edited.shown();
  values.forEach((value, i) => {
    const level = Math.round(255 * Math.min(1, value / edited.top));
    image.data.set([level, level, level, 255], 4 * i);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas.toDataURL("image/png");
}

async function save() {
  const opened = current, { slot, version, words } = opened, edited = opened.edited[slot];
  const labels = Object.fromEntries(Object.entries(opened.labels).filter(([, name]) => name));
  const wanted = { map: drawnPicture(edited), note: $("note").value, shapes: edited.shapes.slice(-200),
    label: facts.multitask ? labels : labels[headNames()[0]] ?? null,
    head: facts.multitask && Object.keys(opened.edited).length > 1 ? opened.head : null };
  opened.words = false;
  $("saved-line").textContent = "";
  const reply = await attempt(async () => {
    await noteNext();
    return ofImage((id) => api.annotate(id, wanted), opened); // another may be open by now
  });
  if (!reply) opened.words ||= words;
  if (!reply || opened !== current) return;
  if (opened.version === version) opened.unsaved.delete(slot);
  $("saved-line").textContent = `Saved as ${reply.name}.`;
  said("The map is saved.");
}

// A picture that is saved or skipped leaves the list of those to do: what follows it is known only before.
async function noteNext() {
  const opened = current, { queue } = opened.from;
  if (queue === undefined || "next" in opened) return;
  try {
    opened.next = await lists.next(queue);
  } catch { /* the work itself says what is wrong */ }
}

async function openNext() {
  if (!mayLeave()) return;
  const opened = current;
  const next = await attempt(async () => ("next" in opened ? opened.next : lists.next(opened.from.queue)));
  if (current !== opened || next === null) return;
  if (next === undefined) {
    complain("This was the last picture of the list.");
    return;
  }
  await openListed({ queue: next }, true);
  $("stage").focus();
}

async function skip() {
  if (!mayLeave()) return;
  const opened = current;
  const done = await attempt(async () => {
    await noteNext();
    await api.mark(opened.from.queue, "skipped");
    return true;
  });
  if (!done || current !== opened) return;
  opened.unsaved.clear(); // agreed to above
  opened.words = false;
  openNext();
}

// A label or a note that was changed is as unsaved as a stroke.
function worded() {
  current.words = true;
  $("saved-line").textContent = "";
}

// --- beginning ---

const acts = {
  view: (name) => {
    choose(name);
    if (name === "queue") lists.refreshQueue();
    if (name === "saved") lists.refreshSaved();
  },
  file: openFile,
  undo: () => edit((edited) => edited.undo()),
  redo: () => edit((edited) => edited.redo()),
  invert: kept((edited) => edited.invert()),
  clear: kept((edited) => edited.clear()),
  reset: kept((edited) => edited.reset()),
  save, skip, next: openNext, layer: () => layers.show(),
  target: () => { layers.show(); layers.beside(); },
  label: (event) => {
    current.labels[current.head] = event.target.value;
    worded();
  },
  note: worded,
  record: download,
  head: (event) => {
    current.head = event.target.value;
    $("saved-line").textContent = "";
    fillClasses();
    refreshAnswer();
    historyButtons();
    layers.show();
    readAloud();
    layers.beside();
  },
};

// After a reload the address says what was open.
async function resume() {
  const [kind, value] = location.hash.slice(1).split("=");
  if (kind === "queue" && facts.queue) await openListed({ queue: Number(value) });
  else if (kind === "saved") await openListed({ saved: decodeURIComponent(value) });
  else if (kind === "image") await open(() => api.opened(value), {});
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
  const run = facts.source.endsWith(".onnx") ? "RUN" : quoted(facts.source);
  $("train-command").textContent = `abn train --from ${run} --annotations ${quoted(facts.annotations)}`;
  layers.begin();
  wire(acts, stage, drawing);
  // What is clicked before all is wired would be lost.
  for (const part of document.querySelectorAll("[inert]")) part.inert = false;
  window.addEventListener("beforeunload", (event) => { if (dirty()) event.preventDefault(); });
  historyButtons();
  lists.begin();
  try {
    await resume();
  } catch {
    history.replaceState(null, "", location.pathname); // not an address that this page wrote
  }
}

main();
