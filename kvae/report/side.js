"use strict";
// One run on the page: its map, the selected code, and the images. Runs on the same images show the same open image.

const sides = [], chosenImage = new Map();

/** Adds to a codebook the positions of each code in all images, its cell on the map, and a view of code counts. */
function addIndex(codebook) {
  codebook.positions = Array.from({ length: codebook.size }, () => []);
  codebook.codes.forEach((code, position) => codebook.positions[code].push(position));
  codebook.cells = [];
  codebook.sheet.forEach((row, i) => row.forEach((code, j) => code >= 0 && (codebook.cells[code] = [i, j])));
  codebook.views.push({ label: `number of times ${codebook.event}`, values: codebook.positions.map((p) => p.length), log: true });
}

class Side {
  constructor(first) {
    this.node = document.getElementById("side").content.cloneNode(true).firstElementChild;
    document.getElementById("sides").append(this.node);
    const code = ([row, column]) => this.codebook.sheet[row][column];
    const here = ([row, column]) => this.codes[row * this.codebook.grid[1] + column];
    const image = ([row, column]) => row * this.thumbnails.columns + column;
    const point = (codeOf) => (cell) => this.point(cell === null ? null : codeOf(cell));
    this.map = new Board(this.part("map"), { point: point(code), choose: (cell) => this.choose(code(cell)) });
    this.image = new Board(this.part("image"), { point: point(here), choose: (cell) => this.choose(here(cell)) });
    this.thumbnails = new Board(this.part("images"), { point: () => {}, choose: (cell) => this.open(image(cell)) });
    this.fill("run", DATA.runs.map((run) => run.name), first);
    this.part("run").onchange = () => this.showRun();
    this.part("codebook").onchange = () => this.showCodebook();
    this.part("view").onchange = () => this.draw();
  }

  part(name) {
    return this.node.querySelector(`.${name}`);
  }

  fill(name, labels, index = 0) {
    this.part(name).replaceChildren(...labels.map((label, i) => new Option(label, i, false, i === index)));
    this.part(name).parentElement.hidden = name !== "run" && labels.length < 2;
  }

  showRun() {
    this.run = DATA.runs[this.part("run").value];
    this.images = DATA.images[this.run.images];
    this.fill("codebook", this.run.codebooks.map((codebook) => codebook.name));
    this.showCodebook();
  }

  showCodebook() {
    this.codebook = this.run.codebooks[this.part("codebook").value];
    const { views, positions, unit, event, about, size } = this.codebook;
    this.fill("view", views.map((view) => view.label));
    const used = positions.filter((list) => list.length).length, total = this.codebook.codes.length;
    this.part("about").textContent =
      `Step ${number(this.run.step)}. ${number(used)} of ${number(size)} ${unit}s ${event} in ` +
      `${number(this.images.count)} validation images (N = ${number(total)}${total < size ? `, so at most ${number(total)}` : ""}). ${about}.`;
    this.pinned = this.firstCode();
    [this.map.row, this.map.column] = this.codebook.cells[this.pinned];
    this.pointed = null;
    this.draw();
  }

  /** Returns the most used code of the open image. If no image is open, opens the one where the most used code is most frequent. */
  firstCode() {
    const { positions, grid, codes } = this.codebook, perImage = grid[0] * grid[1];
    const most = (lengths) => lengths.reduce((best, length, i) => (length > lengths[best] ? i : best), 0);
    if (!chosenImage.has(this.run.images)) {
      const inImage = Array(this.images.count).fill(0);
      positions[most(positions.map((list) => list.length))].forEach((position) => inImage[Math.floor(position / perImage)]++);
      chosenImage.set(this.run.images, most(inImage));
    }
    const counts = Array(positions.length).fill(0);
    codes.slice(this.opened * perImage, (this.opened + 1) * perImage).forEach((code) => counts[code]++);
    return most(counts);
  }

  get code() {
    return this.pointed ?? this.pinned;
  }

  get opened() {
    return chosenImage.get(this.run.images) ?? 0;
  }

  /** The codes of the open image, row by row. */
  get codes() {
    const [rows, columns] = this.codebook.grid;
    return this.codebook.codes.slice(this.opened * rows * columns, (this.opened + 1) * rows * columns);
  }

  point(code) {
    const pointed = code === null || code < 0 || code === undefined ? null : code;
    if (pointed === this.pointed) return;
    this.pointed = pointed;
    this.mark();
  }

  choose(code) {
    if (code < 0 || code === undefined) return;
    Object.assign(this, { pinned: code, pointed: null });
    [this.map.row, this.map.column] = this.codebook.cells[code];
    this.mark();
  }

  open(image) {
    if (image >= this.images.count) return;
    chosenImage.set(this.run.images, image);
    sides.filter((side) => side.run.images === this.run.images).forEach((side) => side.draw());
  }

  draw() {
    this.drawMap();
    this.drawImages();
    this.mark();
  }

  drawMap() {
    const { sheet, views, positions, cell, unit, event } = this.codebook, view = views[this.part("view").value];
    const room = this.node.clientWidth - 8, columns = sheet[0].length + (cell === "hexagon" ? 0.5 : 0);
    const size = clamp(Math.floor(room / columns), 3, 48);
    const shade = view.values && shading(view, positions);
    this.map.lay(sheet.length, sheet[0].length, size, cell === "hexagon", (context, row, column, x, y) => {
      const code = sheet[row][column];
      if (code < 0) return;
      const tall = cell === "hexagon" ? 0.16 * size : 0, box = [x, y - tall / 2, size - 1, size - 1 + tall];
      context.fillStyle = shade ? shade.of(code) : color("--paper");
      context.fillRect(...box);
      context.globalAlpha = positions[code].length ? 1 : 0.35;
      if (view.tiles) drawTile(context, view.tiles, code, ...box);
      if (positions[code].length) return;
      Object.assign(context, { globalAlpha: 1, fillStyle: color("--never") });
      const third = size / 3, [left, top] = cell === "hexagon" ? [x + third, y + third] : [x, y];
      context.fill(new Path2D(`M${left} ${top}h${third}l${-third} ${third}z`));
    });
    this.map.canvas.ariaLabel = `Map of ${unit}s; use the arrow keys to select one`;
    const scale = shade ? [number(shade.low), element("i"), number(shade.high), view.log ? " (log scale). " : ". "] : [];
    if (shade) scale[1].style.background = `linear-gradient(to right, ${ramp(0)}, ${ramp(1)})`;
    this.part("legend").replaceChildren(
      ...scale, `Bold outline: selected ${unit}. Thin outlines: ${unit}s of the open image. Orange corner: not ${event} in these images.`);
  }

  drawImages() {
    const { width, height, count } = this.images, [rows, columns] = this.codebook.grid;
    const size = Math.max(4, Math.floor(IMAGE / Math.max(rows, columns)));
    this.image.lay(rows, columns, size, false, (context, row, column, x, y) => {
      const part = [(column * width) / columns, (row * height) / rows, width / columns, height / rows];
      drawTile(context, this.images, this.opened, x, y, size, size, part);
    });
    this.image.canvas.ariaLabel = "The open image; use the arrow keys to select a position";
    const across = Math.max(1, Math.floor((this.part("scroll").clientWidth - 20) / THUMBNAIL));
    this.thumbnails.lay(Math.ceil(count / across), across, THUMBNAIL, false, (context, row, column, x, y) => {
      const i = row * across + column;
      if (i < count) drawTile(context, this.images, i, x, y, THUMBNAIL - 2, THUMBNAIL - 2);
    });
    this.thumbnails.canvas.ariaLabel = "Validation images; use the arrow keys to open one";
  }

  /** Outlines the code under the pointer, or otherwise the selected code, on the map and in the images. */
  mark() {
    const { positions, cells, grid, unit } = this.codebook, occurrences = positions[this.code];
    const thin = [...new Set(this.codes)].map((code) => [cells[code], 1]);
    this.map.mark([...thin, [cells[this.code], 3]]);
    const inImage = [...this.codes.keys()].filter((i) => this.codes[i] === this.code);
    this.image.mark(inImage.map((i) => [[Math.floor(i / grid[1]), i % grid[1]], 2]));
    const holding = new Set(occurrences.map((position) => Math.floor(position / (grid[0] * grid[1]))));
    const across = this.thumbnails.columns, at = (i) => [Math.floor(i / across), i % across];
    this.thumbnails.mark([...[...holding].map((i) => [at(i), 1]), [at(this.opened), 4]]);
    this.part("words").textContent = this.describe(occurrences, holding.size);
    const here = this.codes.length > 1 ? `${this.code} at ${inImage.length} of ${this.codes.length} positions` : this.codes[0];
    this.part("which").textContent = `Image ${this.opened + 1} of ${number(this.images.count)}: ${unit} ${here}`;
    this.showTiles(occurrences);
  }

  describe(occurrences, images) {
    const { shape, unit, event, codes } = this.codebook, at = [];
    for (let rest = this.code, axis = shape.length - 1; axis >= 0; axis--) {
      at.unshift(rest % shape[axis]);
      rest = Math.floor(rest / shape[axis]);
    }
    const place = at.length === 1 ? "" : at.length === 2 ? ` (row ${at[0]}, column ${at[1]})` : ` at (${at.join(", ")})`;
    const name = unit[0].toUpperCase() + unit.slice(1);
    if (!occurrences.length) return `${name} ${this.code}${place}: not ${event} in these images.`;
    const times = number(occurrences.length), share = number((100 * occurrences.length) / codes.length, 2);
    return `${name} ${this.code}${place}: ${event} ${times} times (${share}%), in ${number(images)} of ${number(this.images.count)} images.`;
  }

  showTiles(occurrences) {
    const now = [this.run.name, this.codebook.name, this.code].join();
    if (now === this.shown) return; // keeps the focus on a clicked patch
    this.shown = now;
    const shown = this.codebook.views.filter((view) => view.tiles).map((view) => {
      const canvas = element("canvas");
      drawTile(sized(canvas, PATCH, PATCH), view.tiles, this.code, 0, 0, PATCH, PATCH);
      return element("figure", {}, canvas, element("figcaption", { textContent: view.label }));
    });
    const step = Math.max(1, occurrences.length / EXAMPLES);
    for (let i = 0; i < occurrences.length && shown.length < EXAMPLES + 2; i += step) {
      shown.push(this.patch(occurrences[Math.floor(i)]));
    }
    this.part("tiles").replaceChildren(...shown);
  }

  /** Returns the image patch around a position; a click opens its image. */
  patch(position) {
    const { grid: [rows, columns], context: wide } = this.codebook, { width, height } = this.images;
    const image = Math.floor(position / (rows * columns));
    const row = Math.floor(position / columns) % rows, column = position % columns;
    const [w, h] = [width / columns, height / rows], canvas = element("canvas"), context = sized(canvas, PATCH, PATCH);
    const before = (wide - 1) / 2, left = (column - before) * w, top = (row - before) * h;
    const part = [Math.max(0, left), Math.max(0, top)];
    part.push(Math.min(width, left + wide * w) - part[0], Math.min(height, top + wide * h) - part[1]);
    const sx = PATCH / (wide * w), sy = PATCH / (wide * h);
    context.fillStyle = color("--line");
    context.fillRect(0, 0, PATCH, PATCH);
    drawTile(context, this.images, image, (part[0] - left) * sx, (part[1] - top) * sy, part[2] * sx, part[3] * sy, part);
    context.strokeStyle = color("--mark");
    if (wide > 1) context.strokeRect(before * w * sx, before * h * sy, w * sx, h * sy);
    const button = element("button", { title: `Open image ${image + 1}`, onclick: () => this.open(image) }, canvas);
    return element("figure", {}, button, element("figcaption", { textContent: `image ${image + 1}` }));
  }
}

/** Returns the colour scale of a view of numbers: its range over the codes in use, and a function from code to colour. */
function shading({ values, log }, positions) {
  const known = values.filter((value, code) => value !== null && positions[code].length);
  const low = Math.min(...known), high = Math.max(...known), scale = log ? Math.log : (value) => value;
  const share = (value) => (scale(value) - scale(low)) / (scale(high) - scale(low) || 1);
  const of = (code) => (values[code] === null || !positions[code].length ? color("--card") : ramp(clamp(share(values[code]), 0, 1)));
  return { low, high, of };
}

/** Decodes the pictures of tile sheets. */
function load(sheets) {
  return Promise.all(sheets.map((sheet) => {
    sheet.picture = Object.assign(new Image(), { src: sheet.src });
    return sheet.picture.decode();
  }));
}

(async () => {
  const codebooks = DATA.runs.flatMap((run) => run.codebooks);
  await load([...DATA.images, ...codebooks.flatMap((codebook) => codebook.views).flatMap((view) => view.tiles ?? [])]);
  codebooks.forEach(addIndex);
  DATA.runs.slice(0, 2).forEach((_, i) => sides.push(new Side(i)));
  sides.forEach((side) => side.showRun()); // after all sides were created, because they share the width
  const again = () => sides.forEach((side) => side.draw());
  window.addEventListener("resize", again);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
})();
