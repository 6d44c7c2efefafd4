// The canvas that shows the picture with a map over it, zoomed and moved; it tells where a pointer is on the picture.

import { extremes, upsample } from "./map.js";

const SHARPNESS = 1.7, FIRST_COLOR = 0.25, COLOR_LEFT = 0.35, LINE = 0.85;

export function range(map, valueRange, stretched) {
  return valueRange && !stretched ? valueRange : extremes(map);
}

// Colour a map: its value is the colour and how much of the picture it hides; a thin line at half of the scale.
export function colored(map, [low, high], colors, opacity, line) {
  const picture = new ImageData(map.w, map.h), span = high - low || 1;
  const strength = new Float32Array(map.values.length);
  for (let i = 0; i < strength.length; i++) {
    strength[i] = high > low ? Math.min(1, Math.max(0, (map.values[i] - low) / span)) : 0;
  }
  for (let i = 0; i < strength.length; i++) {
    const [r, g, b] = colors[Math.round(255 * (FIRST_COLOR + (1 - FIRST_COLOR) * strength[i]))];
    picture.data.set([r, g, b, 255 * opacity * strength[i] ** SHARPNESS], 4 * i);
  }
  if (line && opacity > 0) drawLine(picture, strength, map.w, map.h);
  return picture;
}

function drawLine(picture, strength, w, h) {
  const found = [];
  for (let r = 1; r < h - 1; r++) {
    for (let c = 1; c < w - 1; c++) {
      const i = r * w + c;
      const slope = Math.hypot(strength[i + 1] - strength[i - 1], strength[i + w] - strength[i - w]) / 2;
      if (slope < 1e-4) continue;
      const near = Math.min(1, Math.max(0, 1.25 - Math.abs(strength[i] - 0.5) / slope));
      if (near > 0) found.push([i, near]);
    }
  }
  if (found.length > 0.2 * w * h) return; // In noise it would be everywhere and divide nothing.
  for (const [i, near] of found) {
    const share = LINE * near, at = 4 * i, alpha = picture.data[at + 3] / 255;
    const total = share + alpha * (1 - share);
    for (let k = 0; k < 3; k++) {
      picture.data[at + k] = (255 * share + picture.data[at + k] * alpha * (1 - share)) / total;
    }
    picture.data[at + 3] = 255 * total;
  }
}

function canvasOf(image) {
  const canvas = document.createElement("canvas");
  canvas.width = image.width;
  canvas.height = image.height;
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// Draw a picture in muted colours, so that every warm tone is the map's, with the map over it.
export function compose(context, picture, overlay, x, y, width, height, muted) {
  context.imageSmoothingEnabled = picture.naturalWidth >= 128;
  context.filter = muted ? `saturate(${COLOR_LEFT})` : "none";
  context.drawImage(picture, x, y, width, height);
  context.filter = "none";
  if (!overlay) return;
  context.imageSmoothingEnabled = true;
  context.drawImage(overlay, x, y, width, height);
}

export function thumbnail(canvas, picture, map, valueRange, stretched, colors) {
  const scale = 160 / Math.max(picture.naturalWidth, picture.naturalHeight);
  canvas.width = Math.round(picture.naturalWidth * scale);
  canvas.height = Math.round(picture.naturalHeight * scale);
  const fine = upsample(map, canvas.height, canvas.width);
  const overlay = canvasOf(colored(fine, range(map, valueRange, stretched), colors, 0.8, true));
  compose(canvas.getContext("2d"), picture, overlay, 0, 0, canvas.width, canvas.height, true);
}

export class Stage {
  constructor(canvas, frame) {
    this.canvas = canvas;
    this.frame = frame;
    this.context = canvas.getContext("2d");
    this.picture = null;
    this.overlay = null;
    this.zoom = 1;
    this.moved = [0, 0];
    this.cursor = null; // [x, y, radius] in the picture's pixels
    this.sketch = null; // a shape that is being drawn: { type, points }
    this.onZoom = () => {};
    new ResizeObserver(() => this.draw()).observe(frame);
  }

  show(picture) {
    this.picture = picture;
    this.overlay = null;
    this.fit();
  }

  lay(image) {
    this.overlay = image ? canvasOf(image) : null;
    this.draw();
  }

  fit() {
    this.zoom = 1;
    this.moved = [0, 0];
    this.draw();
  }

  // Scale and corner of the picture on the canvas, in CSS pixels.
  geometry() {
    const width = this.frame.clientWidth, height = this.frame.clientHeight;
    const w = this.picture.naturalWidth, h = this.picture.naturalHeight;
    const scale = this.zoom * Math.min((width - 16) / w, (height - 16) / h);
    return { scale, x: (width - w * scale) / 2 + this.moved[0], y: (height - h * scale) / 2 + this.moved[1] };
  }

  toPicture(clientX, clientY) {
    const box = this.canvas.getBoundingClientRect(), { scale, x, y } = this.geometry();
    return [(clientX - box.left - x) / scale, (clientY - box.top - y) / scale];
  }

  zoomBy(factor, clientX, clientY) {
    if (!this.picture) return;
    const box = this.canvas.getBoundingClientRect();
    const at = [clientX ?? box.left + box.width / 2, clientY ?? box.top + box.height / 2];
    const before = this.toPicture(...at);
    this.zoom = Math.min(12, Math.max(0.5, this.zoom * factor));
    const after = this.toPicture(...at), { scale } = this.geometry();
    this.move((after[0] - before[0]) * scale, (after[1] - before[1]) * scale);
  }

  move(dx, dy) {
    this.moved = [this.moved[0] + dx, this.moved[1] + dy];
    this.draw();
  }

  draw() {
    const ratio = window.devicePixelRatio || 1, context = this.context;
    const width = this.frame.clientWidth, height = this.frame.clientHeight;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    this.onZoom(this.zoom);
    if (!this.picture) return;
    const { scale, x, y } = this.geometry();
    const w = this.picture.naturalWidth * scale, h = this.picture.naturalHeight * scale;
    compose(context, this.picture, this.overlay, x, y, w, h, this.overlay !== null);
    this.drawSketch(scale, x, y);
    if (this.cursor) this.drawCursor(scale, x, y);
  }

  outline(path) {
    const context = this.context;
    context.lineWidth = 3;
    context.strokeStyle = "#000";
    context.stroke(path);
    context.lineWidth = 1.5;
    context.strokeStyle = "#fff";
    context.stroke(path);
  }

  drawCursor(scale, x, y) {
    const [column, row, radius] = this.cursor, path = new Path2D();
    const at = [x + column * scale, y + row * scale];
    path.arc(...at, Math.max(3, radius * scale), 0, 2 * Math.PI);
    path.moveTo(at[0] - 4, at[1]); path.lineTo(at[0] + 4, at[1]);
    path.moveTo(at[0], at[1] - 4); path.lineTo(at[0], at[1] + 4);
    this.outline(path);
  }

  drawSketch(scale, x, y) {
    if (!this.sketch) return;
    const points = this.sketch.points.map(([column, row]) => [x + column * scale, y + row * scale]);
    const path = new Path2D();
    if (this.sketch.type === "box" && points.length === 2) {
      const [[x0, y0], [x1, y1]] = points;
      path.rect(Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0), Math.abs(y1 - y0));
    } else {
      points.forEach((point, i) => (i ? path.lineTo(...point) : path.moveTo(...point)));
      for (const point of points) path.rect(point[0] - 2, point[1] - 2, 4, 4);
    }
    this.outline(path);
  }
}
