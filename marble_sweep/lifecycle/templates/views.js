// The cloud, the stratigraphy and the trace of one token.
const hasCloud = (run) => run.frames.centroid !== null;

// ---------------------------------------------------------------- the cloud

// Points are written as pixels: thousands of circles, or of small pictures, in every frame are ten times as slow.
class Raster {
  constructor(width, height) {
    this.canvas = document.createElement("canvas");
    [this.canvas.width, this.canvas.height] = [width, height];
    this.image = new ImageData(width, height);
    this.pixels = new Uint32Array(this.image.data.buffer);
    [this.width, this.height] = [width, height];
  }

  stamp(x, y, disc, colour) {
    const [left, top] = [Math.round(x), Math.round(y)]; // NaN, which is no position, fails the comparison below
    if (!(left > -9 && top > -9 && left < this.width + 9 && top < this.height + 9)) return;
    for (let i = 0; i < disc.length; i += 2) {
      const [px, py] = [left + disc[i], top + disc[i + 1]];
      if (px >= 0 && py >= 0 && px < this.width && py < this.height) this.pixels[py * this.width + px] = colour;
    }
  }

  paintOn(context, x, y, ratio) {
    const own = this.canvas.getContext("2d");
    own.putImageData(this.image, 0, 0);
    context.drawImage(this.canvas, x, y, this.width / ratio, this.height / ratio);
    this.pixels.fill(0);
  }
}
const rasters = new Map(); // by their size
function rasterOf(width, height) {
  const key = `${width} ${height}`;
  if (!rasters.has(key)) rasters.set(key, new Raster(width, height));
  return rasters.get(key);
}

// The pixels of a disc around its middle, as x, y, x, y …
function discOf(radius) {
  const disc = [];
  const reach = Math.ceil(radius);
  for (let y = -reach; y <= reach; y++)
    for (let x = -reach; x <= reach; x++) if (Math.hypot(x, y) <= radius) disc.push(x, y);
  return disc;
}

function packColour(colour) { // as a pixel of ImageData: bytes R, G, B, A
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return new Uint32Array(new Uint8Array([r, g, b, 255]).buffer)[0];
}

// The window of everything, and that of the close-up, the same for all runs and frames.
function extents() {
  const wide = { x: [0, 0], y: [0, 0] };
  let far = 0;
  for (const run of runs.filter(hasCloud)) {
    const { centroid, reach, live } = run.frames;
    far = Math.max(far, reach);
    const widen = (axis, low, high) => (wide[axis] = [Math.min(wide[axis][0], low), Math.max(wide[axis][1], high)]);
    centroid.forEach((value, i) => widen(i % 2 ? "y" : "x", value - reach, value + reach));
    const low = [UNKNOWN, UNKNOWN];
    const high = [-1, -1];
    live.codes.forEach((code, i) => {
      if (code === UNKNOWN) return;
      if (code < low[i % 2]) low[i % 2] = code;
      if (code > high[i % 2]) high[i % 2] = code;
    });
    for (const [number, axis] of [[0, "x"], [1, "y"]])
      if (high[number] >= 0) widen(axis, live.low + low[number] * live.width, live.low + high[number] * live.width);
  }
  return { wide, far: far || 1 };
}
const { wide, far } = extents();

// Pixels a weight unit and the centre of a view; the scale is the same along and across.
function cloudView(run, box, isClose) {
  const frame = frameOf(run);
  if (isClose) {
    const scale = (Math.min(box.width, box.height) / (2.06 * far)) * state.zoom;
    return { frame, scale, centre: centroidAt(run, frame), origin: centroidAt(run, frame) };
  }
  const [w, h] = [wide.x[1] - wide.x[0] || 1, wide.y[1] - wide.y[0] || 1];
  const scale = Math.min(box.width / w, box.height / h) / 1.06;
  return { frame, scale, centre: [(wide.x[0] + wide.x[1]) / 2, (wide.y[0] + wide.y[1]) / 2], origin: [0, 0] };
}

const CLOUD_MARGIN = { left: 62, right: 10, top: 8, bottom: 38 };
const toPixels = (box, view, [x, y]) => [
  box.x + box.width / 2 + (x - view.centre[0]) * view.scale,
  box.y + box.height / 2 - (y - view.centre[1]) * view.scale,
];

function drawCloudAxes(context, box, view, [along, across]) {
  const half = [box.width / 2 / view.scale, box.height / 2 / view.scale];
  const start = [view.centre[0] - view.origin[0], view.centre[1] - view.origin[1]];
  context.fillStyle = SOFT;
  context.lineWidth = 1;
  context.strokeStyle = GRID;
  context.textBaseline = "top";
  context.textAlign = "center";
  for (const tick of niceTicks(start[0] - half[0], start[0] + half[0], box.width / 75)) {
    const [x] = toPixels(box, view, [tick + view.origin[0], 0]);
    line(context, x, box.y, x, box.y + box.height);
    context.fillText(short(tick), x, box.y + box.height + 6);
  }
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (const tick of niceTicks(start[1] - half[1], start[1] + half[1], box.height / 55)) {
    const [, y] = toPixels(box, view, [0, tick + view.origin[1]]);
    line(context, box.x, y, box.x + box.width, y);
    context.fillText(short(tick), box.x - 6, y);
  }
  context.textAlign = "center";
  context.textBaseline = "top";
  context.fillText(along, box.x + box.width / 2, box.y + box.height + 22);
  drawUnit(context, box, across);
  context.strokeStyle = "#bbb";
  context.strokeRect(box.x + 0.5, box.y + 0.5, box.width, box.height);
}

function drawPath(context, box, view, run, positionOf, colour) {
  const { frame } = view;
  for (const [from, to, alpha] of [[frame, run.frames.steps.length - 1, 0.25], [0, frame, 1]]) {
    context.globalAlpha = alpha;
    context.strokeStyle = colour;
    context.lineWidth = 1.4;
    context.beginPath();
    for (let at = from; at <= to; at++) context.lineTo(...toPixels(box, view, positionOf(at)));
    context.stroke();
  }
  context.globalAlpha = 1;
}

function drawPoints(context, box, view, run, ratio) {
  const raster = rasterOf(Math.round(box.width * ratio), Math.round(box.height * ratio));
  const step = run.frames.steps[view.frame];
  const groups = new Map(["live", ...COLD_FIRST].map((group) => [group, []]));
  for (let token = 0; token < run.numTokens; token++)
    groups.get(token < run.tokens.num_dead ? phaseAt(run, token, step) : "live").push(token);
  for (const [group, tokens] of groups) {
    const colour = packColour(group === "live" ? data.live : colourOf(group));
    const disc = discOf((group === "live" ? 1.5 : 2.3) * ratio);
    for (const token of tokens) {
      const [x, y] = toPixels(box, view, positionAt(run, view.frame, token));
      raster.stamp((x - box.x) * ratio, (y - box.y) * ratio, disc, colour);
    }
  }
  raster.paintOn(context, box.x, box.y, ratio);
}

function drawCloud(context, width, height, run, isClose) {
  const box = inside(width, height, CLOUD_MARGIN);
  const view = cloudView(run, box, isClose);
  drawCloudAxes(context, box, view, run.axes);
  context.save();
  context.beginPath();
  context.rect(box.x, box.y, box.width, box.height);
  context.clip();
  drawPoints(context, box, view, run, context.getTransform().a);
  if (!isClose) drawOrigin(context, toPixels(box, view, [0, 0]));
  if (!isClose) drawPath(context, box, view, run, (frame) => centroidAt(run, frame), INK);
  const picked = run.indexOf.get(state.token);
  if (picked !== undefined) {
    if (!isClose) drawPath(context, box, view, run, (frame) => positionAt(run, frame, picked), PICKED);
    drawRing(context, toPixels(box, view, positionAt(run, view.frame, picked)));
  }
  drawStep(context, box, run, run.frames.steps[view.frame]);
  context.restore();
}

const PICKED = "#009e73";

// The step of this frame: a run beside another may have ended, or have no frame at the very same step.
function drawStep(context, box, run, step) {
  const text = state.step > run.last_step ? `ended at step ${whole(step)}` : `step ${whole(step)}`;
  context.textAlign = "left";
  context.textBaseline = "top";
  context.fillStyle = "rgba(255,255,255,.8)";
  context.fillRect(box.x + 2, box.y + 2, context.measureText(text).width + 8, 18);
  context.fillStyle = INK;
  context.fillText(text, box.x + 6, box.y + 5);
}

function drawOrigin(context, [x, y]) {
  context.strokeStyle = "#999";
  context.lineWidth = 1;
  line(context, x - 7, y, x + 7, y);
  line(context, x, y - 7, x, y + 7);
  context.fillStyle = SOFT;
  context.textAlign = "left";
  context.textBaseline = "bottom";
  context.strokeStyle = "rgba(255,255,255,.85)"; // so that it can be read over points
  context.lineWidth = 3;
  context.strokeText("origin", x + 5, y - 3);
  context.fillText("origin", x + 5, y - 3);
}

function drawRing(context, [x, y]) {
  for (const [colour, thickness] of [["#fff", 5], [PICKED, 2.5]]) {
    context.strokeStyle = colour;
    context.lineWidth = thickness;
    context.beginPath();
    context.arc(x, y, 7, 0, 2 * Math.PI);
    context.stroke();
  }
}

// The token nearest to a pixel, not farther than 14 pixels; the dead, which are what the page is about, come first.
function tokenNear(run, box, view, [x, y]) {
  let [best, least] = [null, 14];
  for (let token = 0; token < run.numTokens; token++) {
    const [px, py] = toPixels(box, view, positionAt(run, view.frame, token));
    const distance = Math.hypot(px - x, py - y) + (token < run.tokens.num_dead ? 0 : 3);
    if (distance < least) [best, least] = [token, distance];
  }
  return best;
}

// ---------------------------------------------------------------- the stratigraphy

const STRATA_MARGIN = { left: 62, right: 12, top: 8, bottom: 38 };
const rowAt = (run, share) => Math.min(run.tokens.num_dead - 1, Math.max(0, Math.floor(share * run.tokens.num_dead)));

// A row of pixels is a token; where there are more tokens than rows, they are evenly taken.
function strataImage(run, width, height) {
  const { tokens } = run;
  const pixels = new Uint32Array(width * height);
  const ends = [tokens.last_early, tokens.last_midlife, tokens.last_motion];
  const colours = PHASES.map((phase) => packColour(colourOf(phase)));
  const undecided = packColour(colourOf("undecided"));
  const end = Math.round(stepToShare(run.last_step) * width); // a run may be shorter than the one beside it
  for (let y = 0; y < height; y++) {
    const token = rowAt(run, (y + 0.5) / height);
    let x = 0;
    ends.forEach((lasts, number) => {
      const to = lasts[token] === NEVER ? 0 : Math.round(stepToShare(lasts[token]) * width);
      if (to > x) pixels.fill(colours[number], y * width + x, y * width + to);
      x = Math.max(x, to);
    });
    if (end > x) pixels.fill(tokens.censored[token] ? undecided : colours[3], y * width + x, y * width + end);
  }
  return new ImageData(new Uint8ClampedArray(pixels.buffer), width, height);
}

function drawStrata(context, width, height, run) {
  const box = inside(width, height, STRATA_MARGIN);
  const ratio = context.getTransform().a;
  const total = run.tokens.num_dead;
  if (total) {
    const image = strataImage(run, Math.round(box.width * ratio), Math.round(box.height * ratio));
    context.putImageData(image, Math.round(box.x * ratio), Math.round(box.y * ratio));
  }
  context.fillStyle = SOFT;
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const tick of niceTicks(0, total, box.height / 60))
    if (Number.isInteger(tick)) context.fillText(whole(tick), box.x - 6, box.y + (tick / (total || 1)) * box.height);
  drawUnit(context, box, "dead tokens, the first to stop at the top");
  drawStepAxis(context, box);
}

function drawOverStrata(context, width, height, run) {
  const box = inside(width, height, STRATA_MARGIN);
  drawPlayhead(context, box);
  const token = run.indexOf.get(state.token);
  if (token === undefined || token >= run.tokens.num_dead) return;
  const y = box.y + ((token + 0.5) / run.tokens.num_dead) * box.height;
  for (const [colour, thickness] of [["#fff", 4], [PICKED, 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = thickness;
    line(context, box.x, y, box.x + box.width, y);
  }
}

// ---------------------------------------------------------------- the trace

function drawTrace(context, width, height, run) {
  const token = run.indexOf.get(state.token);
  if (token === undefined) return;
  const box = inside(width, height);
  const { steps } = run.frames;
  const values = Array.from(steps, (_, frame) => traceAt(run, frame, token));
  const moves = values.filter((value) => value > 0);
  const axis = verticalAxis(Math.min(1, ...moves), Math.max(10, ...moves) * 1.15, true);
  drawVerticalAxis(context, box, axis, `L1, ${run.cells}`);
  for (let frame = 1; frame < steps.length; frame++) { // nothing has moved before the first frame
    const value = values[frame];
    if (!Number.isFinite(value)) continue;
    context.fillStyle = colourOf(phaseAt(run, token, steps[frame]));
    context.beginPath();
    context.arc(box.x + stepToShare(steps[frame]) * box.width, box.y + box.height * (1 - axis.to(value)), 2, 0, 7);
    context.fill();
  }
  drawStepAxis(context, box);
}
