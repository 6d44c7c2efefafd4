// The two lists: pictures to go through, and maps that were saved.

import * as api from "./api.js";

const $ = (id) => document.getElementById(id);
const PAGE = 40;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

function labelText(label) {
  if (!label) return "";
  if (typeof label === "string") return label;
  const entries = Object.entries(label);
  return entries.length === 1 ? entries[0][1] : entries.slice(0, 3).map(([head, name]) => `${head}: ${name}`).join(", ");
}

function picture(address) {
  const image = element("img");
  image.loading = "lazy";
  image.alt = "";
  image.onload = () => image.classList.toggle("pixels", image.naturalWidth < 100);
  image.src = address;
  return image;
}

export class Lists {
  constructor(facts, { open, complain, said }) {
    this.facts = facts;
    this.open = open;
    this.complain = complain;
    this.said = said;
    this.timer = null;
  }

  begin() {
    const facts = this.facts();
    $("tab-queue").hidden = !facts.queue;
    $("queue-title").textContent = facts.queue ?? "";
    $("saved-folder").textContent = `In ${facts.annotations}`;
    const names = [...new Set(Object.values(facts.classes).flat())];
    $("queue-class").append(...names.map((name) => new Option(name, name)));
    for (const id of ["order", "state", "queue-class"]) {
      const kept = sessionStorage.getItem(`queue-${id}`);
      if (kept !== null && [...$(id).options].some((option) => option.value === kept)) $(id).value = kept;
      $(id).onchange = () => {
        sessionStorage.setItem(`queue-${id}`, $(id).value);
        this.refreshQueue();
      };
    }
    $("refresh").onclick = () => this.refreshQueue();
    $("more").onclick = () => this.page($("queue-items").children.length);
  }

  query(offset, limit) {
    const query = { order: $("order").value, state: $("state").value, offset, limit };
    if ($("queue-class").value) query.class = $("queue-class").value;
    return query;
  }

  async refreshQueue() {
    window.clearTimeout(this.timer);
    const found = await this.page(0);
    // The network is still looking at pictures: the order changes, but not under the hands of somebody in the list.
    if (found && found.seen < found.pictures) this.timer = window.setTimeout(() => this.again(), 3000);
  }

  again() {
    const items = $("queue-items");
    if ($("view-queue").hidden || items.children.length > PAGE) return;
    if (items.contains(document.activeElement)) this.timer = window.setTimeout(() => this.again(), 3000);
    else this.refreshQueue();
  }

  async page(offset) {
    const turn = this.turn = (this.turn ?? 0) + 1;
    let found;
    try {
      found = await api.queue(this.query(offset, PAGE));
    } catch (problem) {
      this.complain(problem.message);
      return null;
    }
    if (turn !== this.turn) return null; // another list was asked for meanwhile
    this.complain("");
    if (offset === 0) $("queue-items").replaceChildren();
    const looked = found.seen < found.pictures ? ` The network has looked at ${found.seen} of ${found.pictures}.` : "";
    const broken = found.broken ? ` ${found.broken} cannot be read.` : "";
    $("queue-count").textContent = `${found.total} pictures.${looked}${broken}`;
    // The order may have changed since the page before.
    const here = new Set([...$("queue-items").children].map((tile) => tile.dataset.index));
    const further = found.items.filter((item) => !here.has(String(item.index)));
    $("queue-items").append(...further.map((item) => this.queueTile(item)));
    $("more").hidden = offset + found.items.length >= found.total;
    return found;
  }

  queueTile(item) {
    const tile = element("li"), button = element("button", "tile");
    tile.dataset.index = item.index;
    button.append(picture(`/v1/queue/${item.index}/thumbnail.png`));
    if (item.prediction) {
      const wrong = item.correct === false;
      const text = `${item.prediction}, ${(100 * item.probability).toFixed(0)} %`;
      button.append(element("span", wrong ? "wrong" : item.correct ? "right" : "", (wrong ? "✗ " : item.correct ? "✓ " : "") + text));
    }
    if (item.label) button.append(element("span", "", `label: ${labelText(item.label)}`));
    if (item.state !== "todo") button.append(element("span", "quiet", item.state));
    button.append(element("span", "name", item.name));
    button.onclick = () => this.open({ queue: item.index });
    tile.append(button);
    const row = element("div", "row");
    if (item.state !== "annotated") {
      const skipped = item.state === "skipped", mark = element("button", "", skipped ? "Take back" : "Skip");
      mark.setAttribute("aria-label", `${mark.textContent} ${item.name}`);
      mark.onclick = async () => {
        try {
          const state = skipped ? "todo" : "skipped";
          await api.mark(item.index, state);
          if (["todo", "skipped"].includes($("state").value)) {
            const beside = tile.nextElementSibling ?? tile.previousElementSibling;
            tile.remove();
            (beside?.querySelector("button") ?? $("refresh")).focus();
          } else { // the list goes on holding it
            const instead = this.queueTile({ ...item, state });
            tile.replaceWith(instead);
            instead.querySelector(".row button").focus();
          }
        } catch (problem) {
          this.complain(problem.message);
        }
      };
      row.append(mark);
    }
    tile.append(row);
    return tile;
  }

  // The next picture of the list as it is filtered now, the first where this one is not in it; undefined at its end.
  async next(index) {
    let first, here = false;
    for (let offset = 0; ; offset += 200) {
      const { items, total } = await api.queue(this.query(offset, 200));
      for (const item of items) {
        if (here) return item.index;
        here = item.index === index;
        first ??= item.index;
      }
      if (offset + 200 >= total) return here ? undefined : first;
    }
  }

  async refreshSaved() {
    let found;
    try {
      found = await api.annotations();
    } catch (problem) {
      this.complain(problem.message);
      return;
    }
    const count = found.annotations.length;
    $("saved-folder").textContent = `${count} in ${found.folder}`;
    $("saved-items").replaceChildren(...found.annotations.map((item) => this.savedTile(item)));
  }

  savedTile(item) {
    const tile = element("li");
    if (item.error) {
      tile.append(element("p", "wrong", item.error));
    } else {
      const button = element("button", "tile"), name = encodeURIComponent(item.name);
      button.append(picture(`/v1/annotations/${name}/overlay.png`));
      button.append(element("span", "", labelText(item.label) || "no label"));
      if (item.head) button.append(element("span", "quiet", `map of ${item.head}`));
      button.append(element("span", "name", `${item.source ?? item.name}, ${item.time ?? ""}`));
      button.onclick = () => this.open({ saved: item.name });
      tile.append(button);
    }
    const row = element("div", "row"), remove = element("button", "", "Remove");
    remove.setAttribute("aria-label", `Remove the map of ${item.source ?? item.name}`);
    remove.onclick = async () => {
      if (!window.confirm("Remove this annotation, its picture and its map?")) return;
      try {
        await api.removeAnnotation(item.name);
        this.said("The annotation is removed.");
        await this.refreshSaved();
      } catch (problem) {
        this.complain(problem.message);
      }
    };
    row.append(remove);
    tile.append(row);
    return tile;
  }
}
