// Brush, box and polygon on the stage, by pointer and by keyboard. Places are in the picture's pixels.

function insidePolygon(points, x, y) {
  let inside = false;
  for (let i = 0, j = points.length - 1; i < points.length; j = i++) {
    const [xi, yi] = points[i], [xj, yj] = points[j];
    if (yi > y !== yj > y && x < (xj - xi) * (y - yi) / (yj - yi) + xi) inside = !inside;
  }
  return inside;
}

const SLIP = 6; // pixels that a finger may move and still count as resting

export class Drawing {
  // `host` has: edited (an EditedMap or null), factor (fine places a pixel), changed(final), refused().
  constructor(stage, host) {
    this.stage = stage;
    this.host = host;
    this.mode = "add";
    this.shape = "brush";
    this.size = 16; // the brush's diameter, in percent of the picture's longer side
    this.pointers = new Map();
    this.stroke = null;
    this.waiting = null; // where a finger came down that has neither moved nor lifted yet
    const canvas = stage.canvas;
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.moved(event));
    canvas.addEventListener("pointerup", (event) => this.up(event));
    canvas.addEventListener("pointercancel", (event) => { this.pointers.delete(event.pointerId); this.drop(); });
    canvas.addEventListener("pointerleave", () => { if (!this.pointers.size) { stage.cursor = null; stage.draw(); } });
    canvas.addEventListener("dblclick", () => this.closePolygon());
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      stage.zoomBy(Math.exp(-event.deltaY / 400), event.clientX, event.clientY);
    }, { passive: false });
  }

  radius() {
    const { naturalWidth: w, naturalHeight: h } = this.stage.picture;
    return this.size / 200 * Math.max(w, h);
  }

  choose(shape) {
    this.shape = shape;
    this.stage.sketch = null;
    this.stage.draw();
  }

  down(event) {
    const stage = this.stage;
    if (!stage.picture) return;
    stage.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (this.pointers.size >= 2) {
      this.drop();
      return;
    }
    if (event.button !== 0) return;
    const at = stage.toPicture(event.clientX, event.clientY);
    if (!this.host.edited) {
      this.host.refused();
      return;
    }
    // A finger may be the first of two that zoom.
    if (event.pointerType === "touch") this.waiting = { at, from: [event.clientX, event.clientY] };
    else this.press(at);
  }

  press(at) {
    this.waiting = null;
    if (this.shape === "polygon") this.vertex(at);
    else if (this.shape === "box") this.stage.sketch = { type: "box", points: [at, at] };
    else this.begin(at);
  }

  moved(event) {
    const stage = this.stage;
    if (!stage.picture) return;
    const before = this.pointers.get(event.pointerId);
    if (before && this.pointers.size >= 2) {
      if (this.pointers.size === 2) this.pinch(event);
      return;
    }
    if (before && (event.buttons & 6)) {
      stage.move(event.clientX - before[0], event.clientY - before[1]);
      this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
      return;
    }
    if (this.waiting) {
      const [x, y] = this.waiting.from;
      // A corner is set where the finger lifts, if it does so alone.
      if (this.shape === "polygon" || Math.hypot(event.clientX - x, event.clientY - y) < SLIP) return;
      this.press(this.waiting.at);
    }
    const at = stage.toPicture(event.clientX, event.clientY);
    if (stage.sketch?.type === "box" && before) stage.sketch.points[1] = at;
    if (this.stroke) this.extend(at);
    stage.cursor = this.host.edited ? [...at, this.shape === "brush" ? this.radius() : 0] : null;
    stage.draw();
  }

  up(event) {
    const known = this.pointers.delete(event.pointerId);
    if (!known) return;
    if (this.waiting) this.press(this.waiting.at);
    if (this.stage.sketch?.type === "box") this.closeBox();
    if (this.stroke) this.end();
  }

  pinch(event) {
    const others = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
    const before = this.pointers.get(event.pointerId), other = others[0];
    const was = Math.hypot(before[0] - other[0], before[1] - other[1]);
    const is = Math.hypot(event.clientX - other[0], event.clientY - other[1]);
    this.stage.zoomBy(is / Math.max(1, was), (event.clientX + other[0]) / 2, (event.clientY + other[1]) / 2);
    this.stage.move((event.clientX - before[0]) / 2, (event.clientY - before[1]) / 2);
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
  }

  begin(at) {
    this.host.edited.remember();
    this.stroke = { type: "brush", mode: this.mode, radius: this.radius(), points: [] };
    this.extend(at);
  }

  extend(at) {
    const { factor, edited } = this.host, radius = this.stroke.radius * factor;
    const last = this.stroke.points.at(-1) ?? at;
    const steps = Math.max(1, Math.ceil(Math.hypot(at[0] - last[0], at[1] - last[1]) * factor / (radius / 3)));
    for (let step = 1; step <= steps; step++) {
      const share = step / steps;
      const x = last[0] + (at[0] - last[0]) * share, y = last[1] + (at[1] - last[1]) * share;
      edited.dab(x * factor, y * factor, radius, this.mode);
    }
    this.stroke.points.push(at);
    this.host.changed(false);
  }

  end() {
    this.keep(this.stroke);
    this.stroke = null;
    this.host.changed(true);
  }

  // Give up what was begun, when a second finger shows that it was no drawing.
  drop() {
    this.waiting = null;
    if (this.stage.sketch?.type === "box") this.stage.sketch = null;
    if (this.stroke) {
      this.stroke = null;
      this.host.edited.abandon();
      this.host.changed(true);
    }
    this.stage.draw();
  }

  // Another picture is shown: nothing that was begun goes on.
  forget() {
    this.stroke = null;
    this.waiting = null;
    this.stage.sketch = null;
    this.pointers.clear();
  }

  keep(shape) {
    const { naturalWidth: w, naturalHeight: h } = this.stage.picture;
    const round = (value) => Math.round(value * 1e4) / 1e4;
    const kept = { type: shape.type, mode: this.mode, points: shape.points.map(([x, y]) => [round(x / w), round(y / h)]) };
    if (shape.radius) kept.radius = round(shape.radius / Math.max(w, h));
    this.host.edited.shapes.push(kept);
  }

  closeBox() {
    const [[x0, y0], [x1, y1]] = this.stage.sketch.points, { factor, edited } = this.host;
    const [left, right] = [Math.min(x0, x1) * factor, Math.max(x0, x1) * factor];
    const [top, bottom] = [Math.min(y0, y1) * factor, Math.max(y0, y1) * factor];
    const sketch = this.stage.sketch;
    this.stage.sketch = null;
    if (right - left < 1 || bottom - top < 1) return;
    edited.remember();
    edited.fill((x, y) => x >= left && x < right && y >= top && y < bottom, this.mode);
    this.keep(sketch);
    this.host.changed(true);
  }

  vertex(at) {
    const sketch = this.stage.sketch ??= { type: "polygon", points: [] };
    const { scale } = this.stage.geometry(), first = sketch.points[0];
    if (first && sketch.points.length > 2 && Math.hypot(at[0] - first[0], at[1] - first[1]) * scale < 10) {
      this.closePolygon();
      return;
    }
    sketch.points.push(at);
    this.stage.draw();
  }

  closePolygon() {
    const sketch = this.stage.sketch;
    if (sketch?.type !== "polygon") return;
    const { factor, edited } = this.host;
    this.stage.sketch = null;
    if (sketch.points.length > 2) {
      const points = sketch.points.map(([x, y]) => [x * factor, y * factor]);
      edited.remember();
      edited.fill((x, y) => insidePolygon(points, x, y), this.mode);
      this.keep(sketch);
      this.host.changed(true);
    }
    this.stage.draw();
  }

  // A key on the stage; returns whether it meant something.
  key(event) {
    const stage = this.stage;
    if (!stage.picture || event.ctrlKey || event.metaKey || event.altKey) return false;
    const { naturalWidth: w, naturalHeight: h } = stage.picture;
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (arrows && event.shiftKey) {
      stage.move(-24 * arrows[0], -24 * arrows[1]);
      return true;
    }
    stage.cursor ??= [w / 2, h / 2, 0];
    const cursor = stage.cursor;
    if (arrows) {
      const step = Math.max(w, h) / 28;
      cursor[0] = Math.min(w, Math.max(0, cursor[0] + arrows[0] * step));
      cursor[1] = Math.min(h, Math.max(0, cursor[1] + arrows[1] * step));
      if (stage.sketch?.type === "box") stage.sketch.points[1] = cursor.slice(0, 2);
    } else if (event.key === "Enter" || event.key === " ") {
      if (!this.host.edited) this.host.refused();
      else if (this.shape === "polygon") this.vertex(cursor.slice(0, 2));
      else if (this.shape === "box" && stage.sketch) this.closeBox();
      else if (this.shape === "box") stage.sketch = { type: "box", points: [cursor.slice(0, 2), cursor.slice(0, 2)] };
      else {
        this.begin(cursor.slice(0, 2));
        this.end();
      }
    } else if (event.key.toLowerCase() === "f") this.closePolygon();
    else if (event.key === "Escape") stage.sketch = null;
    else return false;
    cursor[2] = this.shape === "brush" ? this.radius() : 0;
    stage.draw();
    return true;
  }
}
