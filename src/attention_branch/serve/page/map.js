// Maps and what a person draws on them. A map is { h, w, values: Float32Array }, row by row.

export function fromRows(rows) {
  const h = rows.length, w = rows[0].length;
  const values = new Float32Array(h * w);
  rows.forEach((row, r) => values.set(row, r * w));
  return { h, w, values };
}

export function toRows(map) {
  const rows = [];
  for (let r = 0; r < map.h; r++) rows.push(Array.from(map.values.subarray(r * map.w, (r + 1) * map.w)));
  return rows;
}

export function extremes(map) {
  let low = Infinity, high = -Infinity;
  for (const value of map.values) { low = Math.min(low, value); high = Math.max(high, value); }
  return [low, high];
}

// For every fine place, the two coarse ones around it and the second's weight: bilinear, half-pixel centres.
function places(fine, coarse) {
  const first = new Int32Array(fine), second = new Int32Array(fine), weight = new Float32Array(fine);
  for (let i = 0; i < fine; i++) {
    const at = Math.min(Math.max((i + 0.5) * coarse / fine - 0.5, 0), coarse - 1);
    first[i] = Math.floor(at);
    second[i] = Math.min(first[i] + 1, coarse - 1);
    weight[i] = at - first[i];
  }
  return { first, second, weight };
}

export function upsample(map, height, width) {
  const rows = places(height, map.h), columns = places(width, map.w);
  const values = new Float32Array(height * width);
  for (let r = 0; r < height; r++) {
    const top = rows.first[r] * map.w, bottom = rows.second[r] * map.w, down = rows.weight[r];
    for (let c = 0; c < width; c++) {
      const a = columns.first[c], b = columns.second[c], right = columns.weight[c];
      const above = map.values[top + a] * (1 - right) + map.values[top + b] * right;
      const below = map.values[bottom + a] * (1 - right) + map.values[bottom + b] * right;
      values[r * width + c] = above * (1 - down) + below * down;
    }
  }
  return { h: height, w: width, values };
}

// The share of every coarse cell that each fine place covers, as a list of [cell, share] a place.
function cells(fine, coarse) {
  const step = coarse / fine, found = [];
  for (let i = 0; i < fine; i++) {
    const from = i * step, to = (i + 1) * step, list = [];
    for (let cell = Math.floor(from); cell < Math.min(coarse, Math.ceil(to - 1e-9)); cell++) {
      list.push([cell, Math.min(to, cell + 1) - Math.max(from, cell)]);
    }
    found.push(list);
  }
  return found;
}

// The network's own map with what a person drew on it. Under the drawing lies `base` (h, w), the map itself or what
// inverting and clearing made of it; the drawing is fine (height, width): `touched` says where, `drawn` which value.
// So an untouched map stays exactly the network's own, however coarse it is.
export class EditedMap {
  constructor(map, height, width, top) {
    this.own = map;
    this.height = height;
    this.width = width;
    this.top = top; // the value that full means: 1, or the map's largest where maps have no bound
    this.rowCells = cells(height, map.h);
    this.columnCells = cells(width, map.w);
    this.past = [];
    this.future = [];
    this.undone = [];
    this.reset();
  }

  reset() {
    this.base = { ...this.own, values: this.own.values.slice() };
    this.touched = new Uint8Array(this.height * this.width);
    this.drawn = new Uint8Array(this.height * this.width);
    this.shapes = [];
    this.fine = null;
    this.edited = false;
  }

  // Keep the present state, before it is changed.
  remember() {
    this.past.push(this.snapshot());
    if (this.past.length > 60) this.past.shift();
    this.undone = this.future;
    this.future = [];
  }

  snapshot() {
    return { base: this.base, touched: this.touched.slice(), drawn: this.drawn.slice(), shapes: this.shapes.slice(),
      edited: this.edited };
  }

  restore(state) {
    this.base = state.base;
    this.touched = state.touched.slice();
    this.drawn = state.drawn.slice();
    this.shapes = state.shapes.slice();
    this.edited = state.edited;
    this.fine = null;
  }

  // Give up what was begun with `remember`.
  abandon() {
    if (!this.past.length) return;
    this.restore(this.past.pop());
    this.future = this.undone;
  }

  undo() { return this.step(this.past, this.future); }
  redo() { return this.step(this.future, this.past); }
  step(from, to) {
    if (!from.length) return false;
    to.push(this.snapshot());
    this.restore(from.pop());
    return true;
  }

  smooth() {
    if (!this.fine) this.fine = upsample(this.base, this.height, this.width);
    return this.fine.values;
  }

  at(index) {
    return this.touched[index] ? this.drawn[index] / 255 * this.top : this.smooth()[index];
  }

  // Bring a place towards full (add) or nothing (erase), by a weight in [0, 1].
  paint(index, mode, weight) {
    const now = this.at(index) / this.top, goal = mode === "add" ? 1 : 0;
    this.drawn[index] = Math.round(255 * Math.min(1, Math.max(0, now + (goal - now) * weight)));
    this.touched[index] = 1;
    this.edited = true;
  }

  dab(x, y, radius, mode) {
    const x0 = Math.max(0, Math.floor(x - radius)), x1 = Math.min(this.width - 1, Math.ceil(x + radius));
    const y0 = Math.max(0, Math.floor(y - radius)), y1 = Math.min(this.height - 1, Math.ceil(y + radius));
    for (let r = y0; r <= y1; r++) {
      for (let c = x0; c <= x1; c++) {
        const distance = Math.hypot(c + 0.5 - x, r + 0.5 - y) / radius;
        if (distance < 1) this.paint(r * this.width + c, mode, Math.min(1, 2.2 * (1 - distance)));
      }
    }
  }

  // Fill where inside(x, y) holds, by the middles of the fine places.
  fill(inside, mode) {
    for (let r = 0; r < this.height; r++) {
      for (let c = 0; c < this.width; c++) {
        if (inside(c + 0.5, r + 0.5)) this.paint(r * this.width + c, mode, 1);
      }
    }
    this.edited = true;
  }

  invert() {
    this.base = { ...this.base, values: this.base.values.map((value) => this.top - value) };
    for (let i = 0; i < this.drawn.length; i++) this.drawn[i] = 255 - this.drawn[i];
    this.shapes.push({ type: "invert" });
    this.fine = null;
    this.edited = true;
  }

  clear() {
    this.base = { ...this.base, values: new Float32Array(this.base.values.length) };
    this.touched.fill(0);
    this.drawn.fill(0);
    this.shapes = [{ type: "clear" }];
    this.fine = null;
    this.edited = true;
  }

  // Lay a saved drawing, fine values in 0..255, over everything.
  load(levels, shapes) {
    this.drawn.set(levels);
    this.touched.fill(1);
    this.shapes = shapes.slice();
    this.edited = true;
  }

  // The map at fine size, as it is shown and saved.
  shown() {
    const smooth = this.smooth(), values = new Float32Array(smooth.length);
    for (let i = 0; i < values.length; i++) values[i] = this.touched[i] ? this.drawn[i] / 255 * this.top : smooth[i];
    return { h: this.height, w: this.width, values };
  }

  // The map at the network's own size: the base where nothing was drawn, the mean of the drawing where it was.
  coarse() {
    const { h, w } = this.own;
    const share = new Float64Array(h * w), sum = new Float64Array(h * w);
    for (let r = 0; r < this.height; r++) {
      for (let c = 0; c < this.width; c++) {
        const index = r * this.width + c;
        if (!this.touched[index]) continue;
        const value = this.drawn[index] / 255 * this.top;
        for (const [row, down] of this.rowCells[r]) {
          for (const [column, across] of this.columnCells[c]) {
            const cell = row * w + column, part = down * across;
            share[cell] += part;
            sum[cell] += part * value;
          }
        }
      }
    }
    const values = new Float32Array(h * w);
    for (let i = 0; i < values.length; i++) {
      const value = this.base.values[i] * Math.max(0, 1 - share[i]) + sum[i];
      values[i] = Math.min(this.top, Math.max(0, value));
    }
    return { h, w, values };
  }
}
