// Buttons, groups of radio buttons, tabs and keys: what a person can press, and what is told of it.

const $ = (id) => document.getElementById(id);
const VIEWS = ["look", "queue", "saved"];

export function check(group, wanted) {
  const buttons = [...group.querySelectorAll("[role=radio]")];
  const chosen = buttons.find(wanted);
  for (const button of buttons) {
    button.setAttribute("aria-checked", String(button === chosen));
    button.tabIndex = button === (chosen ?? buttons[0]) ? 0 : -1;
  }
}

// Arrow keys walk through a group of buttons, as browsers do for their own radio buttons.
export function walk(group) {
  group.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const buttons = [...group.querySelectorAll("button")].filter((button) => !button.hidden);
    const next = buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length];
    event.preventDefault();
    next.focus();
    next.click();
  };
}

export function choose(view) {
  for (const name of VIEWS) {
    const on = name === view, tab = $(`tab-${name}`);
    $(`view-${name}`).hidden = !on;
    tab.setAttribute("aria-selected", String(on));
    tab.tabIndex = on ? 0 : -1;
  }
}

// `act` has a function for everything that can be done; see app.js.
export function wire(act, stage, drawing) {
  const setMode = (mode) => {
    drawing.mode = mode;
    check($("modes"), (button) => button.dataset.mode === mode);
  };
  const setShape = (shape) => {
    drawing.choose(shape);
    check($("shapes"), (button) => button.dataset.shape === shape);
  };
  const setSize = (size) => {
    $("size").value = size;
    drawing.size = Number($("size").value);
  };
  for (const name of VIEWS) $(`tab-${name}`).onclick = () => act.view(name);
  walk(document.querySelector("header nav"));
  for (const group of ["modes", "shapes"]) walk($(group));
  for (const button of $("modes").children) button.onclick = () => setMode(button.dataset.mode);
  for (const button of $("shapes").children) button.onclick = () => setShape(button.dataset.shape);
  setMode("add");
  setShape("brush");
  $("size").oninput = (event) => setSize(event.target.value);
  for (const name of ["undo", "redo", "invert", "clear", "reset", "save", "skip", "next"]) $(name).onclick = act[name];
  for (const name of ["compare", "scale"]) $(name).onchange = act.layer;
  $("opacity").oninput = act.layer;
  $("class").onchange = act.target;
  $("head").onchange = act.head;
  $("label").onchange = act.label;
  $("note").oninput = act.note;
  $("record").onclick = act.record;
  $("zoom-in").onclick = () => stage.zoomBy(1.25);
  $("zoom-out").onclick = () => stage.zoomBy(0.8);
  $("zoom-fit").onclick = () => stage.fit();
  stage.onZoom = (zoom) => { $("zoom").textContent = `${Math.round(100 * zoom)} %`; };
  document.querySelector(".skip").onclick = (event) => {
    event.preventDefault();
    act.view("look");
    $("stage").focus();
  };
  files(act);
  const letters = { a: () => setMode("add"), e: () => setMode("erase"), b: () => setShape("brush"),
    x: () => setShape("box"), p: () => setShape("polygon"), i: act.invert, c: act.clear,
    "[": () => setSize(drawing.size - 2), "]": () => setSize(drawing.size + 2), "+": () => stage.zoomBy(1.25),
    "=": () => stage.zoomBy(1.25), "-": () => stage.zoomBy(0.8), 0: () => stage.fit() };
  document.addEventListener("keydown", (event) => key(event, act, drawing, letters));
}

function files(act) {
  const frame = $("frame");
  $("file").onchange = (event) => {
    const [file] = event.target.files;
    if (file) act.file(file);
    event.target.value = "";
  };
  document.addEventListener("dragover", (event) => { event.preventDefault(); frame.classList.add("over"); });
  document.addEventListener("dragleave", () => frame.classList.remove("over"));
  for (const [name, from] of [["drop", "dataTransfer"], ["paste", "clipboardData"]]) {
    document.addEventListener(name, (event) => {
      frame.classList.remove("over");
      const [file] = event[from].files;
      if (name === "drop" || file) event.preventDefault();
      if (file) act.file(file);
    });
  }
}

// Letters act on the picture alone: on a button a slip of the finger must not clear a map.
function key(event, act, drawing, letters) {
  if ($("view-look").hidden || event.target.closest("input:not([type=range]), select, textarea")) return;
  const name = event.key.toLowerCase();
  if ((event.ctrlKey || event.metaKey) && (name === "z" || name === "y")) {
    event.preventDefault();
    if (!drawing.stroke) (name === "y" || event.shiftKey ? act.redo : act.undo)();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target !== $("stage") && event.target !== document.body) return;
  if (event.target === $("stage") && drawing.key(event)) event.preventDefault();
  else if (letters[name] && drawing.stage.picture && !drawing.stroke) {
    event.preventDefault();
    letters[name]();
  }
}
