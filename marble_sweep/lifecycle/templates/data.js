"use strict";
// The data: typed arrays out of base64, and what follows from them.
const data = JSON.parse(document.getElementById("data").textContent);
const PHASES = data.phases; // hot to cold
const UNKNOWN = 65535; // the code of NaN and infinities
const LARGEST = 65534;
const NEVER = -1; // a step that there is none of

function decode(packed) {
  const text = atob(packed.data);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new globalThis[packed.type](bytes.buffer);
}

const decodeAll = (object, names) => Object.fromEntries(names.map((name) => [name, decode(object[name])]));

function decodeRange(packed) {
  const width = (packed.high - packed.low) / LARGEST;
  return { codes: decode(packed.codes), low: packed.low, high: packed.high, width };
}

function openPanel(panel) {
  const curves = decodeAll(panel.curves, Object.keys(panel.curves));
  return { ...panel, steps: decode(panel.steps), curves, isEmpty: !Object.keys(curves).length };
}

function openRun(run) {
  const { tokens, frames } = run;
  const names = ["ids", "last_early", "last_midlife", "last_late", "last_motion", "freeze_step", "censored", "straggler"];
  const opened = { ...run, tokens: { ...tokens, ...decodeAll(tokens, names) }, panels: run.panels.map(openPanel) };
  opened.frames = { steps: decode(frames.steps), traces: decodeRange(frames.traces), centroid: null };
  if (frames.centroid) {
    const [centroid, dead, live] = [decode(frames.centroid), decodeRange(frames.dead), decodeRange(frames.live)];
    Object.assign(opened.frames, { centroid, dead, live, reach: frames.reach });
  }
  opened.numTokens = opened.tokens.ids.length;
  opened.numLive = opened.numTokens - tokens.num_dead;
  opened.indexOf = new Map(Array.from(opened.tokens.ids, (id, index) => [id, index]));
  return opened;
}
const runs = data.runs.map(openRun);
const LAST_STEP = Math.max(1, ...runs.map((run) => run.last_step));

// The notches of the slider: the steps of all frames of all runs.
const notches = [...new Set(runs.flatMap((run) => Array.from(run.frames.steps)))].sort((a, b) => a - b);

// The last index whose step is at most `step`; -1 where all are later.
function lastUpTo(steps, step) {
  let low = -1;
  let high = steps.length;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle;
    else high = middle;
  }
  return low;
}

// The phase of a token at a step: that of the first phase which still shows itself at this step or later.
function phaseAt(run, token, step) {
  const { tokens } = run;
  if (step <= tokens.last_early[token]) return "early";
  if (step <= tokens.last_midlife[token]) return "midlife";
  if (step <= tokens.last_motion[token]) return "late";
  return tokens.censored[token] ? "undecided" : "frozen";
}
const colourOf = (phase) => data.colours[phase];

// The L1 norm of a token's step to a frame, in cells; NaN where it is not known.
function traceAt(run, frame, token) {
  const { codes, low, high } = run.frames.traces;
  const code = codes[frame * run.numTokens + token];
  if (code === UNKNOWN) return NaN;
  return code === 0 ? 0 : Math.exp(low + ((code - 1) / (LARGEST - 1)) * (high - low));
}

// A token's position relative to the dead tokens' centroid, and the centroid's; in weight units.
const centroidAt = (run, frame) => [run.frames.centroid[2 * frame], run.frames.centroid[2 * frame + 1]];

function positionAt(run, frame, token) {
  const numDead = run.tokens.num_dead;
  const isDead = token < numDead;
  const { codes, low, width } = isDead ? run.frames.dead : run.frames.live;
  const at = 2 * (isDead ? frame * numDead + token : frame * run.numLive + token - numDead);
  if (codes[at] === UNKNOWN || codes[at + 1] === UNKNOWN) return [NaN, NaN];
  const [x, y] = isDead ? centroidAt(run, frame) : [0, 0];
  return [x + low + codes[at] * width, y + low + codes[at + 1] * width];
}

// ---------------------------------------------------------------- numbers as text

const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";
const whole = (value) => (Math.round(value) || 0).toLocaleString("en-US");
const raised = (power) => (power < 0 ? "⁻" : "") + [...String(Math.abs(power))].map((digit) => SUPERSCRIPTS[digit]).join("");

function short(value, digits = 3) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0"; // −0 too
  const sign = value < 0 ? "−" : "";
  if (size >= 1e6 || size < 1e-3) {
    const [mantissa, power] = size.toExponential(digits - 1).split("e");
    return `${sign}${Number(mantissa) === 1 ? "" : `${Number(mantissa)}×`}10${raised(Number(power))}`;
  }
  if (size >= 1000 || (Number.isInteger(value) && size >= 10)) return sign + whole(size);
  return sign + String(Number(size.toPrecision(digits)));
}
