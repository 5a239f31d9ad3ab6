// The state of the page, and what changes it.
const state = { step: 0, token: null, zoom: 1 };
const $ = (id) => document.getElementById(id);
const frameOf = (run) => Math.max(0, lastUpTo(run.frames.steps, state.step));
const timeouts = { play: null };

function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

// ---------------------------------------------------------------- what is shown of a token

const quoted = (text) => (text === null ? "(no text)" : `“${text}”`);

const nameOf = (run, token) => `${quoted(run.tokens.texts[token])} ${run.tokens.ids[token]}`;

function lifeOf(run, token) {
  const { last_early, last_midlife, last_motion } = run.tokens;
  const parts = [];
  let until = 0;
  for (const [phase, lasts] of [["early", last_early], ["midlife", last_midlife], ["late", last_motion]]) {
    if (lasts[token] <= until) continue;
    parts.push([phase, `${phase} to step ${whole(lasts[token])}`]);
    until = lasts[token];
  }
  return parts;
}

function endOf(run, token) {
  const { last_motion, freeze_step, censored, straggler } = run.tokens;
  const last = last_motion[token];
  if (!censored[token])
    return last === NEVER ? "Never moved." : `Frozen from step ${whole(freeze_step[token])}${straggler[token] ? ", a straggler" : ""}.`;
  if (last === run.last_step) return "Moved in the last recorded step.";
  return `Not moving since step ${whole(last)}: too near the end to be called frozen.`;
}

function showToken(run, panel) {
  const token = state.token === null ? undefined : run.indexOf.get(state.token);
  panel.querySelector(".none").hidden = state.token !== null;
  panel.querySelector(".missing").hidden = state.token === null || token !== undefined;
  panel.querySelector(".picked").hidden = token === undefined;
  if (token === undefined) return;
  panel.querySelector(".text").textContent = quoted(run.tokens.texts[token]);
  panel.querySelector(".id").textContent = `id ${state.token}, ${token < run.tokens.num_dead ? "dead" : "live"}`;
  const life = panel.querySelector(".life");
  life.replaceChildren(
    ...lifeOf(run, token).map(([phase, text]) => {
      const item = element("li", text);
      item.prepend(swatch(colourOf(phase)));
      return item;
    }),
  );
  panel.querySelector(".end").textContent = endOf(run, token);
  const frame = frameOf(run);
  const step = run.frames.steps[frame];
  const phase = phaseAt(run, token, step);
  const cells = traceAt(run, frame, token);
  const unit = short(cells) === "1" ? run.cells.replace("cells", "cell") : run.cells;
  const isKnown = frame > 0 && Number.isFinite(cells);
  const moved = isKnown ? `; it moved ${short(cells)} ${unit} (L1), on average since the step before on the slider` : "";
  panel.querySelector(".now").textContent = `At step ${whole(step)}: ${phase === "undecided" ? "stands still" : phase}${moved}.`;
}

function swatch(colour) {
  const made = element("i");
  made.style.background = colour;
  return made;
}

// The stragglers, or else the last to freeze: the tokens that people ask for first, and a way to them without a mouse.
function listStragglers(run, panel) {
  const dead = Array.from({ length: run.tokens.num_dead }, (_, token) => token).reverse();
  const stragglers = dead.filter((token) => run.tokens.straggler[token]);
  const listed = (stragglers.length ? stragglers : dead).slice(0, 12);
  panel.querySelector(".listed").textContent = stragglers.length ? "Stragglers, the last first:" : "The last to move:";
  panel.querySelector(".stragglers").replaceChildren(
    ...listed.map((token) => {
      const button = element("button", run.tokens.texts[token] ?? String(run.tokens.ids[token]));
      button.type = "button";
      button.addEventListener("click", () => pick(run.tokens.ids[token]));
      return button;
    }),
  );
}

// ---------------------------------------------------------------- changes

function show(step) {
  state.step = step;
  $("slider").value = Math.max(0, lastUpTo(notches, step));
  $("slider").setAttribute("aria-valuetext", `step ${whole(step)}`);
  $("step").textContent = `step ${whole(step)} of ${whole(LAST_STEP)}`;
  for (const surface of surfaces) surface.paint(1);
  for (const update of updates) update();
}
const updates = []; // what else follows the step and the token

function pick(id) {
  state.token = id;
  for (const surface of surfaces) if (surface.holder.classList.contains("trace")) surface.redraw();
  show(state.step);
}

function play(on) {
  clearTimeout(timeouts.play);
  timeouts.play = null;
  $("play").textContent = on ? "❚❚ Pause" : "▶ Play";
  if (!on) return;
  if (Number($("slider").value) === notches.length - 1) show(notches[0]);
  const next = () => {
    const notch = Number($("slider").value) + 1;
    if (notch >= notches.length) return play(false);
    show(notches[notch]);
    timeouts.play = setTimeout(next, 40 / Number($("speed").value));
  };
  timeouts.play = setTimeout(next, 0);
}

// Where a pointer is in a chart: as pixels, and as shares of the box inside its axes.
function pointer(event, surface, margin = MARGIN) {
  const corner = surface.holder.getBoundingClientRect();
  const [x, y] = [event.clientX - corner.left, event.clientY - corner.top];
  const box = inside(surface.width, surface.height, margin);
  return { x, y, box, across: (x - box.x) / box.width, down: (y - box.y) / box.height };
}
const clickedStep = (at) => show(notches[Math.max(0, lastUpTo(notches, shareToStep(at.across)))]);

// ---------------------------------------------------------------- the parts

function makeCloud(holder, run) {
  const isClose = holder.classList.contains("close");
  if (!hasCloud(run)) return;
  const surface = new Surface(holder, () => {}, (context, width, height) => drawCloud(context, width, height, run, isClose));
  holder.addEventListener("click", (event) => {
    const at = pointer(event, surface, CLOUD_MARGIN);
    const token = tokenNear(run, at.box, cloudView(run, at.box, isClose), [at.x, at.y]);
    pick(token === null ? null : run.tokens.ids[token]);
  });
  holder.addEventListener("mousemove", (event) => {
    const at = pointer(event, surface, CLOUD_MARGIN);
    const token = tokenNear(run, at.box, cloudView(run, at.box, isClose), [at.x, at.y]);
    holder.title = token === null ? "" : nameOf(run, token);
  });
}

function makeStrata(holder, run) {
  const surface = new Surface(
    holder,
    (context, width, height) => drawStrata(context, width, height, run),
    (context, width, height) => drawOverStrata(context, width, height, run),
  );
  const last = run.tokens.num_dead - 1;
  if (last < 0) return;
  holder.addEventListener("click", (event) => {
    const at = pointer(event, surface, STRATA_MARGIN);
    clickedStep(at);
    pick(run.tokens.ids[rowAt(run, at.down)]);
  });
  holder.addEventListener("mousemove", (event) => {
    holder.title = nameOf(run, rowAt(run, pointer(event, surface, STRATA_MARGIN).down));
  });
  holder.addEventListener("keydown", (event) => {
    const now = run.indexOf.get(state.token) ?? -1;
    const moves = { ArrowDown: now + 1, ArrowUp: now - 1, PageDown: now + 50, PageUp: now - 50, Home: 0, End: last };
    if (!(event.key in moves)) return;
    event.preventDefault();
    pick(run.tokens.ids[Math.min(last, Math.max(0, moves[event.key]))]);
  });
}

function makePanel(figure, run) {
  const panel = run.panels.find((candidate) => candidate.name === figure.dataset.panel);
  const [holder, legend] = [figure.querySelector(".chart"), figure.querySelector(".legend")];
  if (panel.isEmpty) {
    holder.replaceWith(element("p", "This record has no such numbers.", "missing"));
    return;
  }
  const axis = panelAxis(panel);
  const surface = new Surface(
    holder,
    (context, width, height) => drawPanel(context, width, height, run, panel, axis),
    (context, width, height) => drawPlayhead(context, inside(width, height)),
  );
  holder.addEventListener("click", (event) => clickedStep(pointer(event, surface)));
  const values = Object.keys(panel.curves).map((name) => {
    const item = legend.appendChild(element("span", `${panel.columns[name].split(panel.stacked ? ":" : "\0")[0]} `));
    item.prepend(swatch(lineColour(panel, name)));
    return [name, item.appendChild(element("b"))];
  });
  updates.push(() => {
    const at = lastUpTo(panel.steps, state.step);
    for (const [name, value] of values) value.textContent = at < 0 ? "–" : short(panel.curves[name][at]);
  });
}

function makeToken(panel, run) {
  listStragglers(run, panel);
  new Surface(
    panel.querySelector(".trace"),
    (context, width, height) => drawTrace(context, width, height, run),
    (context, width, height) => run.indexOf.has(state.token) && drawPlayhead(context, inside(width, height)),
  );
  updates.push(() => showToken(run, panel));
}

function find(text) {
  const wanted = text.trim();
  for (const run of runs) {
    const byText = run.tokens.texts.findIndex((candidate) => candidate !== null && candidate.trim() === wanted);
    if (wanted !== "" && byText >= 0) return pick(run.tokens.ids[byText]);
    if (/^\d+$/.test(wanted) && run.indexOf.has(Number(wanted))) return pick(Number(wanted));
  }
  $("find").setCustomValidity(wanted ? "no token on this page has this text or id" : "");
  $("find").reportValidity();
}

const makers = { cloud: makeCloud, strata: makeStrata, panel: makePanel, token: makeToken };
for (const holder of document.querySelectorAll("[data-part]"))
  makers[holder.dataset.part](holder, runs[Number(holder.dataset.run)]);

$("slider").max = notches.length - 1;
$("slider").addEventListener("input", (event) => {
  play(false);
  show(notches[event.target.value]);
});
$("play").addEventListener("click", () => play(timeouts.play === null));
$("axis").addEventListener("change", (event) => {
  stepAxis = STEP_AXES[event.target.value];
  for (const surface of surfaces) surface.redraw();
});
$("zoom").addEventListener("change", (event) => {
  state.zoom = Number(event.target.value);
  show(state.step);
});
$("find").addEventListener("input", (event) => event.target.setCustomValidity(""));
$("find").addEventListener("keydown", (event) => event.key === "Enter" && find(event.target.value));
show(notches[0]);
