// Which map lies over the picture: the buttons, the legend, and all of them side by side.

import * as api from "./api.js";
import { check, walk } from "./controls.js";
import { extremes, fromRows, upsample } from "./map.js";
import { colored, range, thumbnail } from "./stage.js";

const NAMES = { attention: "Attention", "attention-class": "Evidence", cam: "CAM", "grad-cam": "Grad-CAM",
  "grad-cam++": "Grad-CAM++", "layer-cam": "LayerCAM", "soft-masks": "Soft masks", rollout: "Rollout" };

const $ = (id) => document.getElementById(id);
const wantsClass = (method) => !["attention", "soft-masks", "rollout", "picture"].includes(method);

export class Layers {
  // `page` has: current (the open image), facts, colors, attempt(work), begin(kind); see app.js.
  constructor(stage, page) {
    this.stage = stage;
    this.page = page;
  }

  begin() {
    $("layers").replaceChildren(...[...this.page.facts.methods, "picture"].map((method) => {
      const button = document.createElement("button");
      button.setAttribute("role", "radio");
      button.dataset.method = method;
      button.textContent = method === "picture" ? "Picture alone" : NAMES[method] ?? method;
      button.onclick = () => this.choose(method);
      return button;
    }));
    check($("layers"), () => false);
    walk($("layers"));
  }

  choose(method) {
    if (!this.page.current) return;
    this.page.current.method = method;
    this.show();
  }

  // A method's map of the open image, for the chosen head and class.
  async mapOf(method) {
    const { current, facts } = this.page;
    const own = current.maps[`attention|${current.head}`] ?? current.maps["attention|label"];
    if (method === "attention" && own) return own;
    const chosen = wantsClass(method) && $("class").value !== "" ? Number($("class").value) : null;
    const key = `${method}|${current.head}|${chosen}`;
    if (!current.maps[key]) {
      const head = facts.multitask ? current.head : null;
      const reply = await this.page.ofImage((id) => api.map(id, method, head, chosen));
      current.maps[key] = { map: fromRows(reply.values), reply };
    }
    return current.maps[key];
  }

  mark() {
    const { method } = this.page.current;
    check($("layers"), (button) => button.dataset.method === method);
    $("class-field").hidden = !wantsClass(method);
    for (const button of $("beside").children) {
      button.setAttribute("aria-pressed", String(button.dataset.method === method));
    }
  }

  async show() {
    const { current } = this.page;
    if (!current) return;
    const latest = this.page.begin("layer");
    this.mark();
    if (current.method === "picture") {
      this.stage.lay(null);
      $("legend").hidden = true;
      return;
    }
    const found = await this.page.attempt(() => this.mapOf(current.method));
    if (!latest()) return;
    if (found) this.paint(found);
    else {
      this.stage.lay(null); // another class's map would stand under this one's name
      $("legend").hidden = true;
    }
  }

  paint(found) {
    const { current, colors } = this.page, edited = current.edited[current.slot];
    const mine = current.method === "attention" && edited?.edited && !$("compare").checked;
    const { naturalHeight: height, naturalWidth: width } = current.picture;
    const fine = mine ? edited.shown() : upsample(found.map, height * current.factor, width * current.factor);
    const bounds = found.reply.value_range ?? (mine ? [0, edited.top] : null);
    const scale = range(mine ? fine : found.map, bounds, $("scale").value === "stretched");
    this.stage.lay(colored(fine, scale, colors, $("opacity").value / 100, true));
    this.legend(scale, found, mine);
  }

  legend([low, high], { map, reply }, mine) {
    const { current, colors } = this.page;
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

  async beside() {
    const { current, facts, colors } = this.page, latest = this.page.begin("beside"), made = [];
    const { naturalHeight: height, naturalWidth: width } = current.picture;
    $("beside").style.setProperty("--shape", `${width} / ${height}`);
    for (const method of facts.methods.slice(0, 6)) {
      const found = await this.mapOf(method).catch(() => null); // the layer itself says why when it is chosen
      if (!latest()) return;
      if (!found) continue;
      const button = document.createElement("button"), canvas = document.createElement("canvas");
      thumbnail(canvas, current.picture, found.map, found.reply.value_range, false, colors);
      const name = NAMES[method] ?? method;
      button.dataset.method = method;
      button.append(canvas, found.reply.target ? `${name}: ${found.reply.target.class}` : name);
      button.onclick = () => this.choose(method);
      made.push(button);
    }
    $("beside").replaceChildren(...made);
    this.mark();
  }
}
