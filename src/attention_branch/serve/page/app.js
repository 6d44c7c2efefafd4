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

const dirty = () => current !== null && [...current.unsaved].some((slot) => current.edited[slot].edited);
const mayLeave = () => !dirty() || window.confirm("The map that you drew is not saved. Leave it?");

async function open(request, from) {
  if (!mayLeave()) return;
  const before = current, version = current?.version, latest = begin("open");
  const reply = await attempt(request);
  const picture = reply && latest() ? await attempt(() => api.image(`/v1/images/${reply.id}/view.png`)) : null;
  // Somebody may have gone on drawing meanwhile.
  if (!picture || !latest() || (before && before.version !== version && !mayLeave())) return;
  await shown(reply, picture, from);
}

const openFile = (file) => open(() => api.openFile(file), { file });
function openListed(what) {
  return open(() => ("queue" in what ? api.openQueued(what.queue) : api.openSaved(what.saved)), what);
}
const askedAgain = ({ file, queue, saved }) => (file ? () => api.openFile(file)
  : queue !== undefined ? () => api.openQueued(queue) : saved !== undefined ? () => api.openSaved(saved) : null);

function remember() {
  const { saved, queue } = current.from;
  const what = saved !== undefined ? `saved=${encodeURIComponent(saved)}` : queue !== undefined ? `queue=${queue}`
    : `image=${current.id}`;
  history.replaceState(null, "", `#${what}`);
}

async function shown(reply, picture, from) {
  drawing.forget();
  const longer = Math.max(picture.naturalWidth, picture.naturalHeight);
  current = { id: reply.id, reply, picture, from, maps: {}, edited: {}, answers: {}, unsaved: new Set(), version: 0,
    labels: { ...reply.label }, factor: Math.max(1, Math.ceil(FINE / longer)), head: reply.saved?.head ?? headNames()[0],
    slot: null, method: facts.methods[0] ?? "picture" };
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
  if (reply.saved) await loadSaved(reply.saved);
  await layers.show();
  said(`${reply.file} is open. ${$("prediction").textContent}, ${$("probability").textContent}.`);
  readAloud();
  layers.beside();
}

async function loadSaved({ name, head, note, shapes }) {
  $("note").value = note ?? "";
  const opened = current;
  const drawn = await attempt(() => api.image(`/v1/annotations/${encodeURIComponent(name)}/view.png`));
  if (!drawn || current !== opened) return;
  const slots = head !== null && current.edited[head] ? [head] : Object.keys(current.edited);
  for (const edited of slots.map((slot) => current.edited[slot])) {
    const canvas = document.createElement("canvas");
    canvas.width = edited.width;
    canvas.height = edited.height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(drawn, 0, 0, edited.width, edited.height);
    const { data } = context.getImageData(0, 0, edited.width, edited.height);
    edited.remember();
    edited.load(Uint8Array.from({ length: edited.drawn.length }, (_, i) => data[4 * i]), shapes ?? []);
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
  const known = current.labels[current.head];
  $("label").value = names.includes(known) ? known : "";
  $("truth").textContent = known ? `Labelled '${known}'.` : "";
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
  $("skip").hidden = $("next").hidden = current.from.queue === undefined;
  $("saved-line").textContent = "";
  $("note").value = "";
  $("compare").checked = false;
  historyButtons();
  refreshAnswer();
  showTrace(current.reply);
  $("record").href = `/v1/images/${current.id}/record`;
}

const refreshAnswer = () => showAnswer(
  facts.classes[current.head], answerOf(current.reply, current.head), current.answers[current.head] ?? null);

async function readAloud() {
  const latest = begin("reading");
  try {
    const { sentences } = await api.reading(current.id, headQuery());
    if (latest()) showReading(sentences);
  } catch (problem) {
    if (latest()) complain(problem.message);
  }
}

// --- questions ---

let asking = false, again = false;

function changed(final) {
  current.version += 1;
  current.unsaved.add(current.slot);
  if (current.method !== "attention") {
    current.method = "attention";
    layers.mark();
  }
  $("compare").checked = false;
  window.cancelAnimationFrame(changed.frame);
  changed.frame = window.requestAnimationFrame(async () => layers.paint(await layers.mapOf("attention")));
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
  const opened = current, maps = {};
  for (const [head, edited] of Object.entries(opened.edited)) if (edited.edited) maps[head] = toRows(edited.coarse());
  const begun = performance.now(), some = Object.keys(maps).length > 0;
  try {
    const reply = some ? await api.ask(opened.id, maps, TOP) : null;
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
      if (problem.status === 404) again ||= await reopen();
      if (problem.status === 503) window.setTimeout(() => current === opened && ask(), 2000);
    }
  } finally {
    asking = false;
    if (again && current) {
      again = false;
      ask();
    }
  }
}

// The server keeps the last images only, and none when it was started anew: send the picture again.
async function reopen() {
  const opened = current, request = askedAgain(opened.from);
  const reply = request ? await attempt(request) : null;
  if (current !== opened) return false;
  if (!reply) {
    complain("The server does not have this image any more; open it again. What you drew is still here.");
    return false;
  }
  opened.id = reply.id;
  remember();
  $("record").href = `/v1/images/${reply.id}/record`;
  return true;
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
  const opened = current, { slot, version } = opened, edited = opened.edited[slot];
  const labels = Object.fromEntries(Object.entries(opened.labels).filter(([, name]) => name));
  const wanted = { map: drawnPicture(edited), note: $("note").value, shapes: edited.shapes.slice(-200),
    label: facts.multitask ? labels : labels[headNames()[0]] ?? null,
    head: facts.multitask && Object.keys(opened.edited).length > 1 ? opened.head : null };
  const send = async () => {
    try {
      return await api.annotate(opened.id, wanted);
    } catch (problem) {
      if (problem.status !== 404 || current !== opened || !await reopen()) throw problem;
      return api.annotate(opened.id, wanted);
    }
  };
  const reply = await attempt(send);
  if (!reply || opened !== current) return;
  if (opened.version === version) opened.unsaved.delete(slot);
  $("saved-line").textContent = `Saved as ${reply.name}.`;
  said("The map is saved.");
}

async function openNext() {
  if (!mayLeave()) return;
  current.unsaved.clear();
  const next = await attempt(() => lists.next(current.from.queue));
  if (next === undefined) said("There is no further picture.");
  else if (next !== null) {
    await openListed({ queue: next });
    $("stage").focus();
  }
}

async function skip() {
  const done = await attempt(async () => { await api.mark(current.from.queue, "skipped"); return true; });
  if (done) openNext();
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
  label: (event) => { current.labels[current.head] = event.target.value; },
  head: (event) => {
    current.head = event.target.value;
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
