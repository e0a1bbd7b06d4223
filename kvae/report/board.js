"use strict";
// The codebook page. All of its data is in the element `data`; kvae/report/page.py documents the format.

const DATA = JSON.parse(document.getElementById("data").textContent);
const EXAMPLES = 10, PATCH = 72, IMAGE = 288, THUMBNAIL = 48;
const LIGHT = [237, 243, 224], DARK = [8, 40, 107];

const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
const ramp = (share) => `rgb(${LIGHT.map((light, i) => Math.round(light + share * (DARK[i] - light)))})`;
const number = (value, digits = 21) => value.toLocaleString("en", { maximumSignificantDigits: digits });

/** Creates an element with properties and children. */
function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** Sets the size of a canvas in CSS pixels, at the screen's resolution; returns its context. */
function sized(canvas, width, height) {
  const sharp = window.devicePixelRatio || 1;
  Object.assign(canvas, { width: Math.round(width * sharp), height: Math.round(height * sharp) });
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  const context = canvas.getContext("2d");
  context.scale(sharp, sharp);
  context.imageSmoothingEnabled = false;
  return context;
}

/** Draws tile i of a sheet {picture, columns, width, height}, or a part [x, y, width, height] of it. */
function drawTile(context, sheet, i, x, y, width, height, part = [0, 0, sheet.width, sheet.height]) {
  const left = (i % sheet.columns) * sheet.width, top = Math.floor(i / sheet.columns) * sheet.height;
  context.drawImage(sheet.picture, left + part[0], top + part[1], part[2], part[3], x, y, width, height);
}

/** A canvas with cells in rows and columns. The pointer previews a cell; a click or the arrow keys select one. */
class Board {
  constructor(canvas, { point, choose }) {
    Object.assign(this, { canvas, row: 0, column: 0 });
    canvas.addEventListener("pointermove", (event) => point(this.under(event)));
    canvas.addEventListener("pointerleave", () => point(null));
    canvas.addEventListener("click", (event) => this.go(this.under(event), choose));
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    canvas.addEventListener("keydown", (event) => {
      if (!(event.key in moves)) return;
      event.preventDefault();
      const [down, right] = moves[event.key];
      this.go([clamp(this.row + down, 0, this.rows - 1), clamp(this.column + right, 0, this.columns - 1)], choose);
    });
  }

  go([row, column], choose) {
    Object.assign(this, { row, column });
    choose([row, column]);
  }

  /** Sets up the cells and draws each of them once. */
  lay(rows, columns, size, hexagonal, draw) {
    Object.assign(this, { rows, columns, size, hexagonal, pitch: size * (hexagonal ? 0.866 : 1) });
    const width = (columns + (hexagonal ? 0.5 : 0)) * size, height = (rows - 1) * this.pitch + size * (hexagonal ? 1.16 : 1);
    this.context = sized(this.canvas, width, height);
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        const [x, y] = this.corner(row, column);
        this.context.save();
        if (hexagonal) this.context.clip(this.outline(row, column));
        draw(this.context, row, column, x, y);
        this.context.restore();
      }
    }
    this.drawn = new OffscreenCanvas(this.canvas.width, this.canvas.height);
    this.drawn.getContext("2d").drawImage(this.canvas, 0, 0);
  }

  corner(row, column) {
    const aside = this.hexagonal && row % 2 ? this.size / 2 : 0;
    return [column * this.size + aside, row * this.pitch + (this.hexagonal ? 0.08 * this.size : 0)];
  }

  under(event) {
    const box = this.canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let best = [0, 0], least = Infinity;
    const near = clamp(Math.floor(y / this.pitch), 0, this.rows - 1);
    for (const row of [near - 1, near, near + 1]) {
      if (row < 0 || row >= this.rows) continue;
      const column = clamp(Math.floor((x - this.corner(row, 0)[0]) / this.size), 0, this.columns - 1);
      const [left, top] = this.corner(row, column);
      const away = Math.hypot(left + this.size / 2 - x, top + this.size / 2 - y);
      if (away < least) [best, least] = [[row, column], away];
    }
    return best;
  }

  outline(row, column) {
    const [x, y] = this.corner(row, column), s = this.size - 1, path = new Path2D();
    if (!this.hexagonal) {
      path.rect(x + 0.5, y + 0.5, s - 1, s - 1);
      return path;
    }
    for (let k = 0; k < 6; k++) {
      const angle = (Math.PI * (2 * k + 1)) / 6;
      path.lineTo(x + s / 2 + (s / Math.sqrt(3)) * Math.cos(angle), y + s / 2 + (s / Math.sqrt(3)) * Math.sin(angle));
    }
    path.closePath();
    return path;
  }

  /** Redraws the cells, then draws outlines over them; each outline is a pair of a cell and a line width. */
  mark(outlines) {
    this.context.save();
    this.context.setTransform(1, 0, 0, 1, 0, 0);
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.context.drawImage(this.drawn, 0, 0);
    this.context.restore();
    for (const [[row, column], width] of outlines) {
      for (const [style, wider] of [["#fff", 2], [color("--mark"), 0]]) {
        Object.assign(this.context, { strokeStyle: style, lineWidth: width + wider });
        this.context.stroke(this.outline(row, column));
      }
    }
  }
}
