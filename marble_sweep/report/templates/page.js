"use strict";
// A chart has one trace per colour, and a last one that draws what is picked over them.
const data = JSON.parse(document.getElementById("data").textContent);
const INK = "#222";
const CATEGORIES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555", "#8B6914"];
const SCALE = ["#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0b81c"]; // dark is small
const touch = matchMedia("(pointer: coarse)").matches;
const config = { responsive: true, displayModeBar: false };
let picked = null; // index of a group

const escape = (text) => String(text).replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);
const short = (value) => (typeof value === "number" ? String(Number(value.toPrecision(6))) : value === null ? "none" : String(value));
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.codes), (c) => c.charCodeAt(0));
  const width = (packed.high - packed.low) / 65534;
  return Array.from(new Uint16Array(bytes.buffer), (code) => (code === 65535 ? null : packed.low + code * width));
}

function curve(run, name) {
  if (name === "val_loss") return { x: run.evals.steps, y: run.evals.losses };
  return run.curves[name] ? { x: unpack(run.steps), y: unpack(run.curves[name]) } : { x: [], y: [] };
}

function layout(more) {
  const axis = { gridcolor: "#e8e8e8", zeroline: false, linecolor: "#999", automargin: true };
  const base = {
    margin: { l: 50, r: 12, t: 8, b: 40 }, font: { family: "system-ui, sans-serif", size: 12, color: INK },
    showlegend: false, hovermode: "closest", dragmode: touch ? false : "zoom", paper_bgcolor: "#fff", plot_bgcolor: "#fff",
  };
  return { ...base, ...more, xaxis: { ...axis, ...more.xaxis }, yaxis: { ...axis, ...more.yaxis } };
}

// Horizontal lines at the baselines, named inside the chart.
function baselines() {
  const lines = Object.entries(data.baselines).filter(([, level]) => level !== null);
  return {
    shapes: lines.map(([name, y]) => ({
      type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y,
      line: { color: INK, width: 1.2, dash: name === "unigram" ? "solid" : "dash" },
    })),
    annotations: lines.map(([name, y]) => ({
      xref: "paper", x: 1, xanchor: "right", y, yanchor: "bottom", showarrow: false, bgcolor: "rgba(255,255,255,.75)",
      text: `${name} ${y.toFixed(3)}`, font: { size: 11 },
    })),
  };
}

// ---------------------------------------------------------------- colours

// The means of an outcome at a parameter's values, and the range between them.
function effect(index, outcome) {
  const levels = new Map();
  for (const group of data.groups) {
    if (group[outcome] === null) continue;
    const level = group.parameters[index];
    if (!levels.has(level)) levels.set(level, []);
    levels.get(level).push(group[outcome]);
  }
  const numeric = [...levels.keys()].every((level) => typeof level === "number");
  const sorted = [...levels.entries()].sort(([a], [b]) => (numeric ? a - b : String(a).localeCompare(String(b))));
  const means = sorted.map(([, values]) => mean(values));
  return { name: data.parameters[index], index, outcome, levels: sorted, means, range: Math.max(...means) - Math.min(...means) };
}
const effectsOn = (outcome) => data.parameters.map((_, index) => effect(index, outcome)).sort((a, b) => (b.range || 0) - (a.range || 0));
const effects = effectsOn("value");
const OUTCOMES = {
  value: { title: data.objective, hover: ".4f", range: (range) => range.toFixed(3) },
  freeze: { title: "Step by which half of the dead tokens are frozen", hover: ",.0f", range: (range) => `${Math.round(range).toLocaleString("en")} steps` },
};

// Bins of the groups: one per value of the parameter, or fewer with neighbouring values where there are many.
function bins(index) {
  if (index === null) return data.groups.slice(0, 1).map(() => ({ label: "all runs", groups: data.groups.map((_, i) => i) }));
  const values = [...new Set(data.groups.map((group) => group.parameters[index]))];
  const numeric = values.every((value) => typeof value === "number");
  values.sort((a, b) => (numeric ? a - b : String(a).localeCompare(String(b))));
  const maxBins = numeric ? SCALE.length : CATEGORIES.length;
  const size = Math.ceil(values.length / maxBins);
  const parts = [];
  for (let start = 0; start < values.length; start += size) {
    const part = values.slice(start, start + size);
    const label = part.length === 1 ? short(part[0]) : numeric ? `${short(part[0])} to ${short(part.at(-1))}` : `${short(part[0])} and ${part.length - 1} more`;
    const groups = data.groups.flatMap((group, i) => (part.includes(group.parameters[index]) ? [i] : []));
    parts.push({ label, groups });
  }
  const pickColour = (i) => (numeric ? SCALE[parts.length === 1 ? 0 : Math.round((i * (SCALE.length - 1)) / (parts.length - 1))] : CATEGORIES[i]);
  return parts.map((bin, i) => ({ ...bin, colour: pickColour(i) }));
}

let colouring = [];
function recolour(index) {
  colouring = bins(index).map((bin) => ({ colour: CATEGORIES[0], ...bin }));
  const key = document.getElementById("key");
  key.replaceChildren(...colouring.map((bin) => {
    const entry = document.createElement("span"), swatch = document.createElement("i");
    swatch.style.background = bin.colour;
    entry.append(swatch, bin.label);
    return entry;
  }));
  for (const chart of charts) if (chart.drawn) chart.draw();
}
const colourOf = (group) => colouring.find((bin) => bin.groups.includes(group))?.colour ?? INK;

// ---------------------------------------------------------------- charts

// The curves of several runs as one line with gaps.
function joined(runs, name) {
  const x = [], y = [], text = [], customdata = [];
  for (const run of runs) {
    const line = curve(run, name), label = escape(data.groups[run.group].label);
    for (let i = 0; i <= line.x.length; i++) {
      x.push(line.x[i] ?? null);
      y.push(line.y[i] ?? null);
      text.push(label);
      customdata.push(run.group);
    }
  }
  return { x, y, text, customdata };
}

function drawCurves(chart) {
  const name = chart.element.dataset.curve, few = data.runs.length <= 12;
  const style = { type: "scatter", mode: name === "val_loss" ? "lines+markers" : "lines", marker: { size: few ? 5 : 3 },
    hovertemplate: "%{text}<br>step %{x:,.0f}: %{y:.4f}<extra></extra>" };
  const traces = colouring.map((bin) => ({ ...style, ...joined(data.runs.filter((run) => bin.groups.includes(run.group)), name),
    line: { color: bin.colour, width: few ? 1.8 : 1.1 }, opacity: few ? 1 : 0.75 }));
  const over = joined(data.runs.filter((run) => run.group === picked), name);
  traces.push({ ...style, ...over, line: { color: INK, width: 2.5 }, marker: { size: 6 } });
  const lines = name.endsWith("loss") ? baselines() : {};
  const ends = data.runs.map((run) => Math.max(...run.evals.steps.slice(-1), 0));
  if (data.step !== null && Math.max(...ends) > data.step) {
    const at = { type: "line", yref: "paper", y0: 0, y1: 1, x0: data.step, x1: data.step, line: { color: "#999", width: 1, dash: "dot" } };
    lines.shapes = [...(lines.shapes ?? []), at];
  }
  const share = name.startsWith("dead_");
  Plotly.react(chart.element, traces, layout({ ...lines, xaxis: { title: { text: "training step" }, tickformat: ",d", rangemode: "tozero" },
    yaxis: share ? { tickformat: ".0%", range: [-0.02, 1.02] } : {} }), config);
}

// The configurations that no smaller one equals or beats.
function frontier() {
  const sized = data.groups.filter((group) => group.value !== null && group.n_params !== null);
  sized.sort((a, b) => a.n_params - b.n_params || a.value - b.value);
  let best = Infinity;
  return sized.filter((group) => group.value < best && ((best = group.value), true));
}

function drawFrontier(chart) {
  const shown = data.groups.map((group, index) => ({ ...group, index })).filter((group) => group.value !== null && group.n_params !== null);
  const edge = data.step === null ? [] : frontier(), sizes = shown.map((g) => g.n_params), wide = Math.max(...sizes) > 8 * Math.min(...sizes);
  const traces = [
    { type: "scatter", mode: "lines", x: edge.map((g) => g.n_params), y: edge.map((g) => g.value), hoverinfo: "skip",
      line: { color: "#999", width: 1.5, shape: "hv" } },
    { type: "scatter", mode: "markers", x: sizes, y: shown.map((g) => g.value),
      text: shown.map((g) => escape(g.label)), customdata: shown.map((g) => g.index),
      error_y: { type: "data", array: shown.map((g) => g.spread ?? 0), thickness: 1, width: 3, color: "#888" },
      marker: { size: shown.map((g) => (g.index === picked ? 16 : 9)), color: shown.map((g) => colourOf(g.index)),
        line: { color: shown.map((g) => (g.index === picked ? INK : "#fff")), width: shown.map((g) => (g.index === picked ? 3 : 1)) } },
      hovertemplate: "%{text}<br>%{x:,} parameters<br>%{y:.4f}<extra></extra>" },
  ];
  Plotly.react(chart.element, traces, layout({ ...baselines(), xaxis: { type: "log", title: { text: "parameters" }, exponentformat: "SI", ...(wide ? { dtick: "D2" } : {}) },
    yaxis: { title: { text: data.objective } } }), config);
}

function drawEffect(chart) {
  const { index, outcome, levels, means } = chart.effect, { title, hover } = OUTCOMES[outcome];
  const shown = data.groups.map((group, i) => ({ ...group, i })).filter((group) => group[outcome] !== null);
  const category = (value) => escape(short(value));
  const traces = [
    { type: "scatter", mode: "lines", x: levels.map(([level]) => category(level)), y: means, line: { color: INK, width: 2 }, hoverinfo: "skip" },
    { type: "scatter", mode: "markers", x: shown.map((g) => category(g.parameters[index])), y: shown.map((g) => g[outcome]),
      text: shown.map((g) => escape(g.label)), customdata: shown.map((g) => g.i), hovertemplate: `%{text}<br>%{y:${hover}}<extra></extra>`,
      marker: { size: shown.map((g) => (g.i === picked ? 14 : 8)), color: shown.map((g) => colourOf(g.i)), opacity: 0.85,
        line: { color: INK, width: shown.map((g) => (g.i === picked ? 2.5 : 0)) } } },
  ];
  Plotly.react(chart.element, traces, layout({ xaxis: { type: "category", categoryorder: "array", categoryarray: levels.map(([level]) => category(level)) },
    yaxis: { title: { text: title } } }), config);
}

function drawParallel(chart) {
  const shown = data.groups.filter((group) => group.value !== null);
  const dimensions = data.parameters.map((name, index) => {
    const values = [...new Set(shown.map((g) => g.parameters[index]))];
    const numeric = values.every((value) => typeof value === "number");
    values.sort((a, b) => (numeric ? a - b : String(a).localeCompare(String(b))));
    const ticks = values.length <= 12 ? { tickvals: values.map((_, i) => i), ticktext: values.map((v) => escape(short(v))) } : {};
    return values.length > 12 && numeric ? { label: escape(name), values: shown.map((g) => g.parameters[index]) }
      : { label: escape(name), values: shown.map((g) => values.indexOf(g.parameters[index])), ...ticks };
  });
  dimensions.push({ label: "loss", values: shown.map((g) => g.value) });
  chart.element.style.minWidth = `${90 * dimensions.length}px`;
  const colours = ["#440154", "#365c8d", "#1fa187", "#a0da39"].map((colour, i) => [i / 3, colour]);
  const line = { color: shown.map((g) => g.value), colorscale: colours, showscale: false };
  Plotly.react(chart.element, [{ type: "parcoords", dimensions, line }], layout({ margin: { l: 50, r: 50, t: 60, b: 35 } }), config);
}

// A chart is drawn when it first comes near the window, and redrawn only while it is near.
class Chart {
  constructor(element, draw, effect) {
    this.element = element;
    this.paint = draw;
    this.effect = effect;
    this.near = this.drawn = this.stale = false;
  }
  draw() {
    this.stale = !this.near;
    if (!this.near) return;
    this.paint(this);
    if (!this.drawn) this.element.on("plotly_click", (event) => {
      const group = event.points?.[0]?.customdata;
      if (typeof group === "number") pick(group);
    });
    this.drawn = true;
  }
}
const charts = [];
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const chart = charts.find(({ element }) => element === entry.target);
    chart.near = entry.isIntersecting;
    if (chart.near && (!chart.drawn || chart.stale)) chart.draw();
  }
}, { rootMargin: "200px" });

function pick(group) {
  picked = group === picked ? null : group;
  for (const row of document.querySelectorAll("#runs tbody tr")) row.setAttribute("aria-selected", Number(row.dataset.group) === picked);
  const note = document.getElementById("picked");
  note.hidden = picked === null;
  note.firstElementChild.textContent = picked === null ? "" : data.groups[picked].label;
  document.body.classList.toggle("picked", picked !== null);
  for (const chart of charts) {
    if (chart.element.classList.contains("curve")) chart.element.classList.toggle("picking", picked !== null);
    if (chart.drawn && chart.paint !== drawParallel) chart.draw();
  }
}

// ---------------------------------------------------------------- table

function sortBy(head) {
  const column = head.cellIndex, descending = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = document.querySelector("#runs tbody"), sign = descending ? -1 : 1;
  const order = new Intl.Collator(undefined, { numeric: true });
  const value = (row) => row.cells[column].dataset.value;
  body.append(...[...body.rows].sort((first, second) => {
    const a = value(first), b = value(second);
    if (a === "" || b === "") return (a === "") - (b === ""); // unknown comes last either way
    return sign * (isNaN(a) || isNaN(b) ? order.compare(a, b) : a - b);
  }));
}
for (const head of document.querySelectorAll("#runs th")) head.firstElementChild.addEventListener("click", () => sortBy(head));
for (const row of document.querySelectorAll("#runs tbody tr")) {
  row.addEventListener("click", () => pick(Number(row.dataset.group)));
  row.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pick(Number(row.dataset.group)); }
  });
}
document.querySelector("#picked button").addEventListener("click", () => pick(picked));

// ---------------------------------------------------------------- start

charts.push(new Chart(document.getElementById("frontier"), drawFrontier));
for (const element of document.querySelectorAll(".curve")) charts.push(new Chart(element, drawCurves));
function addEffect(effect, parent) {
  const figure = document.createElement("figure"), caption = document.createElement("figcaption"), element = document.createElement("div");
  const range = Number.isFinite(effect.range) ? OUTCOMES[effect.outcome].range(effect.range) : null;
  caption.textContent = range === null ? effect.name : `${effect.name}: ${range} between its means`;
  element.className = "chart";
  figure.append(caption, element);
  parent.append(figure);
  charts.push(new Chart(element, drawEffect, effect));
}
for (const [id, outcome] of [["effects", "value"], ["freezes", "freeze"]]) {
  const parent = document.getElementById(id); // left out where runs end at different steps, or none has a lifecycle
  if (parent) for (const effect of effectsOn(outcome)) addEffect(effect, parent);
}
if (document.getElementById("parallel")) charts.push(new Chart(document.getElementById("parallel"), drawParallel));
const select = document.getElementById("colour");
select.append(...effects.map((effect) => new Option(effect.name, effect.index)));
select.addEventListener("change", () => recolour(Number(select.value)));
document.querySelector("#bar label").hidden = !effects.length;
recolour(effects.length ? effects[0].index : null);
for (const chart of charts) watcher.observe(chart.element);
