// Charts on canvases: a base that is drawn once, and an overlay that is drawn at every step.
const INK = "#222";
const SOFT = "#5c5c5c";
const GRID = "#e6e6e6";
const FONT = "12px system-ui, sans-serif";

// Axes of steps: positions from 0 to 1. Most happens early, so the square root is the first choice.
const STEP_AXES = {
  "square root": { to: Math.sqrt, from: (x) => x * x },
  logarithmic: { to: Math.log1p, from: Math.expm1 },
  linear: { to: (step) => step, from: (x) => x },
};
let stepAxis = STEP_AXES["square root"];
const stepToShare = (step) => stepAxis.to(Math.max(0, step)) / stepAxis.to(LAST_STEP);
const shareToStep = (share) => stepAxis.from(Math.min(1, Math.max(0, share)) * stepAxis.to(LAST_STEP));

class Surface {
  // `draw` and `over` are called with a context in CSS pixels, the width and the height.
  constructor(holder, draw, over) {
    this.holder = holder;
    this.layers = [draw, over].map((paint) => {
      const canvas = holder.appendChild(document.createElement("canvas"));
      return { canvas, paint };
    });
    new ResizeObserver(() => this.resize()).observe(holder);
    surfaces.push(this);
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.holder;
    if (!width || !height) return;
    this.ratio = window.devicePixelRatio || 1;
    for (const { canvas } of this.layers) {
      canvas.width = Math.round(width * this.ratio);
      canvas.height = Math.round(height * this.ratio);
    }
    [this.width, this.height] = [width, height];
    this.redraw();
  }

  paint(number) {
    if (!this.width) return;
    const { canvas, paint } = this.layers[number];
    const context = canvas.getContext("2d");
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    context.font = FONT;
    paint(context, this.width, this.height);
  }

  redraw() {
    this.paint(0);
    this.paint(1);
  }
}
const surfaces = [];

// ---------------------------------------------------------------- axes

function niceTicks(low, high, number) {
  const rough = (high - low) / number || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / size - 1e-9); i * size <= high + size * 1e-9; i++) ticks.push(i * size);
  return ticks;
}

// Ticks of an axis of steps, `room` pixels apart at least. Powers of ten come first.
function stepTicks(width, room = 58) {
  if (stepAxis === STEP_AXES.linear) return niceTicks(0, LAST_STEP, Math.max(2, width / 100)).map(Math.round);
  const ticks = [0];
  for (const factor of [1, 5, 2])
    for (let power = 10 ** Math.floor(Math.log10(LAST_STEP)); power >= 1; power /= 10) {
      const step = factor * power;
      const isFree = ticks.every((tick) => Math.abs(stepToShare(tick) - stepToShare(step)) * width >= room);
      if (step <= LAST_STEP && isFree) ticks.push(step);
    }
  return ticks.sort((a, b) => a - b);
}

// A vertical axis over `low` … `high`: `to` gives 0 at the bottom and 1 at the top. A logarithmic one has 0 at its foot.
function verticalAxis(low, high, log) {
  if (!log) {
    const height = high - low || 1;
    return { low, high, to: (value) => (value - low) / height, ticks: (pixels) => niceTicks(low, high, pixels / 42) };
  }
  const [floor, top] = [Math.log10(low) - 0.45, Math.log10(high)];
  const height = top - floor || 1;
  const to = (value) => (value <= 0 ? 0 : Math.max(0, (Math.log10(value) - floor) / height));
  const ticks = (pixels) => {
    const every = Math.max(1, Math.ceil((top - floor) / (pixels / 26)));
    const powers = [];
    for (let power = Math.ceil(Math.log10(low) - 1e-9); power <= top + 1e-9; power += every) powers.push(10 ** power);
    return [0, ...powers.filter((power) => to(power) * pixels > 14)]; // else it would be written over the 0
  };
  return { low, high, to, ticks, log };
}

const MARGIN = { left: 66, right: 12, top: 8, bottom: 38 };
const inside = (width, height, margin = MARGIN) => ({
  x: margin.left,
  y: margin.top,
  width: Math.max(1, width - margin.left - margin.right),
  height: Math.max(1, height - margin.top - margin.bottom),
});

function line(context, x0, y0, x1, y1) {
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  context.stroke();
}

function drawStepAxis(context, box) {
  context.strokeStyle = "#999";
  context.lineWidth = 1;
  line(context, box.x, box.y + box.height + 0.5, box.x + box.width, box.y + box.height + 0.5);
  context.fillStyle = SOFT;
  context.textBaseline = "top";
  for (const step of stepTicks(box.width)) {
    const x = box.x + stepToShare(step) * box.width;
    line(context, x, box.y + box.height, x, box.y + box.height + 4);
    context.textAlign = x > box.x + box.width - 18 ? "right" : "center";
    context.fillText(whole(step), x, box.y + box.height + 6);
  }
  context.textAlign = "center";
  const scale = stepAxis === STEP_AXES.linear ? "" : ` (${$("axis").value} scale)`;
  context.fillText(`training step${scale}`, box.x + box.width / 2, box.y + box.height + 22);
}

function drawVerticalAxis(context, box, axis, unit) {
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (const value of axis.ticks(box.height)) {
    const y = box.y + box.height * (1 - axis.to(value));
    context.strokeStyle = GRID;
    line(context, box.x, y, box.x + box.width, y);
    context.fillStyle = SOFT;
    context.fillText(short(value), box.x - 6, y);
  }
  drawUnit(context, box, unit);
}

function drawUnit(context, box, unit) {
  context.save();
  context.translate(9, box.y + box.height / 2);
  context.rotate(-Math.PI / 2);
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillStyle = SOFT;
  context.fillText(unit, 0, 0);
  context.restore();
}

// The vertical line at the step that is shown.
function drawPlayhead(context, box) {
  const x = box.x + stepToShare(state.step) * box.width;
  context.strokeStyle = "rgba(255,255,255,.9)";
  context.lineWidth = 3;
  line(context, x, box.y, x, box.y + box.height);
  context.strokeStyle = INK;
  context.lineWidth = 1.25;
  line(context, x, box.y, x, box.y + box.height);
}

// ---------------------------------------------------------------- charts over the steps

// The range of a panel's columns over all runs, so that runs side by side have the same axis.
function panelAxis(panel) {
  if (panel.to_one) return verticalAxis(0, 1, false);
  if (panel.stacked) return verticalAxis(0, Math.max(1, ...runs.map((run) => run.num_dead)), false);
  let [low, high] = [Infinity, -Infinity];
  for (const run of runs)
    for (const values of Object.values(run.panels.find((other) => other.name === panel.name).curves))
      for (const value of values)
        if (Number.isFinite(value) && !(panel.log && value <= 0)) [low, high] = [Math.min(low, value), Math.max(high, value)];
  if (panel.line_at !== null && low < Infinity) [low, high] = [Math.min(low, panel.line_at), Math.max(high, panel.line_at)];
  if (low > high) [low, high] = [panel.log ? 0.1 : 0, 1];
  if (panel.log) return verticalAxis(low, high * 1.15, true);
  if (panel.from_zero && high === 0) high = 1;
  if (panel.from_zero) low = Math.min(0, low);
  const room = (high - low) * 0.05 || Math.abs(high) * 0.05 || 0.5;
  return verticalAxis(low === 0 ? 0 : low - room, high + room, false);
}

const COLD_FIRST = ["frozen", "undecided", "late", "midlife", "early"];
const lineColour = (panel, name) =>
  panel.stacked ? colourOf(name) : data.lines[Object.keys(panel.columns).indexOf(name) % data.lines.length];

function drawCurve(context, box, axis, steps, values, colour) {
  context.strokeStyle = colour;
  context.lineWidth = 1.8;
  context.lineJoin = "round";
  context.beginPath();
  let isOpen = false;
  for (let i = 0; i < steps.length; i++) {
    if (!Number.isFinite(values[i])) {
      isOpen = false;
      continue;
    }
    const [x, y] = [box.x + stepToShare(steps[i]) * box.width, box.y + box.height * (1 - axis.to(values[i]))];
    if (isOpen) context.lineTo(x, y);
    else context.moveTo(x, y);
    isOpen = true;
  }
  context.stroke();
}

function drawStack(context, box, axis, panel) {
  const { steps } = panel;
  const below = new Float64Array(steps.length);
  for (const phase of COLD_FIRST) {
    const values = panel.curves[phase];
    if (!values) continue;
    const top = below.map((base, i) => base + (Number.isFinite(values[i]) ? values[i] : 0));
    const point = (heights, i) => [box.x + stepToShare(steps[i]) * box.width, box.y + box.height * (1 - axis.to(heights[i]))];
    context.fillStyle = colourOf(phase);
    context.beginPath();
    for (let i = 0; i < steps.length; i++) context.lineTo(...point(top, i));
    for (let i = steps.length - 1; i >= 0; i--) context.lineTo(...point(below, i));
    context.fill();
    below.set(top);
  }
}

const EPOCHS = { contraction: "rgba(0,114,178,.13)", expansion: "rgba(213,94,0,.13)", standstill: "rgba(0,0,0,0)" };

function drawEpochs(context, box, run) {
  context.textBaseline = "top";
  context.textAlign = "center";
  for (const [start, end, kind] of run.epochs) {
    const [left, right] = [start, end].map((step) => box.x + stepToShare(step) * box.width);
    context.fillStyle = EPOCHS[kind] ?? EPOCHS.standstill;
    context.fillRect(left, box.y, right - left, box.height);
    context.strokeStyle = "#bbb";
    line(context, right, box.y, right, box.y + box.height);
    context.fillStyle = SOFT;
    if (right - left > context.measureText(kind).width + 6) context.fillText(kind, (left + right) / 2, box.y + 3);
  }
}

function drawPanel(context, width, height, run, panel, axis) {
  const box = inside(width, height);
  if (panel.has_epochs) drawEpochs(context, box, run);
  drawVerticalAxis(context, box, axis, panel.unit);
  if (panel.stacked) drawStack(context, box, axis, panel);
  if (panel.line_at !== null) {
    const y = box.y + box.height * (1 - axis.to(panel.line_at));
    context.strokeStyle = context.fillStyle = INK;
    context.lineWidth = 1.25;
    context.setLineDash([5, 4]);
    line(context, box.x, y, box.x + box.width, y);
    context.setLineDash([]);
    context.textAlign = "right";
    context.textBaseline = "bottom";
    context.fillText(panel.line_text, box.x + box.width - 4, y - 2);
  }
  if (!panel.stacked)
    for (const [name, values] of Object.entries(panel.curves)) {
      context.setLineDash(panel.dashed.includes(name) ? [6, 5] : []);
      drawCurve(context, box, axis, panel.steps, values, lineColour(panel, name));
    }
  context.setLineDash([]);
  drawStepAxis(context, box);
}
