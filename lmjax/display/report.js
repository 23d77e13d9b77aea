// Curves of a report: hover for values, drag to zoom, double click to reset; no library. All text is set as text.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const several = data.runs.length > 1;
  const axisNames = Object.keys(data.axes);
  const state = { axis: axisNames[0], range: null, hiddenRuns: new Set() };
  const margin = { left: 58, right: 14, top: 10, bottom: 34 };
  const views = [];

  // ---- Elements ----
  function element(name, properties = {}, parent = null) {
    const made = Object.assign(document.createElement(name), properties);
    if (parent) parent.append(made);
    return made;
  }
  function drawn(name, attributes, parent) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    parent.append(made);
    return made;
  }
  function toggle(text, colour, pressed, parent, changed, kind = "") {
    const button = element("button", { type: "button", className: kind === "log" ? "toggle log" : "toggle" }, parent);
    if (colour) element("span", { className: `swatch c${colour} ${kind}` }, button);
    button.append(text);
    button.setAttribute("aria-pressed", pressed);
    button.addEventListener("click", () => {
      const now = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", now);
      changed(now);
    });
    return button;
  }

  // ---- Numbers ----
  function short(value, digits = 3) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    for (const [unit, factor] of [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]])
      if (size >= factor && size < 1e15) return +(value / factor).toPrecision(digits) + unit;
    return size < 1e-3 || size >= 1e15 ? value.toExponential(digits - 2) : String(+value.toPrecision(digits));
  }
  function duration(seconds) {
    if (seconds < 60) return `${+seconds.toPrecision(3)}s`;
    const minutes = Math.floor(seconds / 60), pad = (n) => String(Math.floor(n)).padStart(2, "0");
    if (minutes < 60) return `${minutes}m${pad(seconds % 60)}s`;
    return minutes < 1440 ? `${Math.floor(minutes / 60)}h${pad(minutes % 60)}m`
      : `${Math.floor(minutes / 1440)}d${pad((minutes % 1440) / 60)}h`;
  }
  const placeText = (value, digits) => (state.axis === "time" ? duration(value) : short(value, digits));
  function ticks(low, high, count, steps = [1, 2, 5, 10]) {
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * steps.find((s) => s * power >= rough * 0.999);
    const result = [];
    for (let n = Math.ceil(low / step); n * step <= high * (1 + 1e-12) && result.length < 50; n++) result.push(n * step);
    return result;
  }
  function timeTicks(low, high, count) {
    const unit = [1, 60, 3600, 86400].filter((s) => s * 2 <= high - low).pop() || 1;
    const steps = unit === 1 || unit === 86400 ? [1, 2, 5, 10] : [1, 2, 3, 6, 10];
    return ticks(low / unit, high / unit, count, steps).map((n) => n * unit);
  }
  function logTicks(low, high) {
    const result = [], factors = Math.log10(high / low) > 2.5 ? [1] : [1, 2, 5];
    const stride = Math.max(1, Math.ceil(Math.log10(high / low) / 6));
    for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power += stride)
      for (const factor of factors) {
        const value = factor * 10 ** power;
        if (value >= low && value <= high) result.push(value);
      }
    return result.length > 1 ? result : [low, high];
  }

  // ---- Ranges ----
  const points = (series) => series.x[state.axis] || [];
  function fullRange() {
    let high = 0;
    for (const { chart } of views)
      for (const series of chart.series) for (const x of points(series)) if (x > high) high = x;
    return [0, high || 1];
  }
  const isShown = (view, series) => !state.hiddenRuns.has(series.run) && !view.hidden.has(series.name);
  function valueRange(view, [left, right]) {
    let low = Infinity, high = -Infinity;
    for (const series of view.chart.series) {
      if (series.kind === "marks" || !isShown(view, series)) continue;
      const x = points(series);
      let inside = series.y.filter((y, i) => y !== null && x[i] >= left && x[i] <= right && (!view.log || y > 0));
      if (!inside.length) continue;
      low = inside.reduce((a, b) => Math.min(a, b), low);
      const first = inside[0];
      if (!state.range && !view.log && inside.length > 50) { // a spike does not flatten the curve
        inside = [first, inside.sort((a, b) => a - b)[Math.floor(inside.length * 0.985)]];
      }
      high = inside.reduce((a, b) => Math.max(a, b), high);
    }
    for (const value of Object.values(view.chart.references))
      if (value !== null && value < low && (!view.log || value > 0)) low = value;
    if (low > high) return view.log ? [0.1, 1] : [0, 1];
    if (view.log) return low === high ? [low / 2, high * 2] : [low / 1.08, high * 1.08];
    const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    return view.chart.zero && low >= 0 ? [0, high + (room || 1)] : [low - room, high + room];
  }

  // ---- Drawing ----
  function colourOf(view, series) {
    const index = several ? series.run : Math.max(view.lines.indexOf(series.name), 0);
    return (index % 7) + 1;
  }
  function widthOf(series) { // equal curves stay visible: each is narrower than the one below it
    const below = data.runs.length - 1 - series.run;
    return 1.7 + Math.min(2.4, 4 / Math.max(data.runs.length - 1, 1)) * below;
  }
  function path(view, series) {
    const x = points(series);
    let text = "", before = null;
    series.y.forEach((y, i) => {
      if (y === null || (view.log && y <= 0)) { before = null; return; }
      const px = view.toX(x[i]).toFixed(1), py = view.toY(y).toFixed(1);
      if (before === null) text += `M${px} ${py}`;
      else text += series.kind === "step" ? `V${py}H${px}` : `L${px} ${py}`;
      before = y;
    });
    return text;
  }
  function draw(view) {
    const width = Math.max(view.box.clientWidth, 200), height = view.wide ? 340 : 220;
    const range = state.range || fullRange(), [low, high] = valueRange(view, range);
    const inner = { w: width - margin.left - margin.right, h: height - margin.top - margin.bottom };
    const scale = view.log ? Math.log : (y) => y;
    view.toX = (x) => margin.left + ((x - range[0]) / (range[1] - range[0])) * inner.w;
    view.fromX = (px) => range[0] + ((px - margin.left) / inner.w) * (range[1] - range[0]);
    view.toY = (y) => {
      const share = (scale(y) - scale(low)) / (scale(high) - scale(low) || 1);
      return margin.top + inner.h * (1 - Math.max(-20, Math.min(20, share)));
    };
    view.range = range;
    view.inner = inner;
    const svg = view.svg;
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    const clip = drawn("clipPath", { id: `clip${view.number}` }, svg);
    drawn("rect", { x: margin.left, y: margin.top - 4, width: inner.w + 4, height: inner.h + 8 }, clip);
    const bottom = margin.top + inner.h;
    for (const y of view.log ? logTicks(low, high) : ticks(low, high, view.wide ? 6 : 4)) {
      const py = view.toY(y);
      drawn("line", { class: "grid", x1: margin.left, x2: margin.left + inner.w, y1: py, y2: py }, svg);
      drawn("text", { class: "tick", x: margin.left - 6, y: py + 4, "text-anchor": "end" }, svg).textContent = short(y);
    }
    for (const x of (state.axis === "time" ? timeTicks : ticks)(...range, Math.max(2, Math.floor(inner.w / 90)))) {
      const px = view.toX(x);
      drawn("line", { class: "grid", x1: px, x2: px, y1: margin.top, y2: bottom }, svg);
      drawn("text", { class: "tick", x: px, y: bottom + 15, "text-anchor": "middle" }, svg).textContent = placeText(x, 4);
    }
    drawn("text", { class: "label", x: margin.left + inner.w / 2, y: height - 4, "text-anchor": "middle" }, svg)
      .textContent = data.axes[state.axis];
    drawn("path", { class: "frame", d: `M${margin.left} ${margin.top}V${bottom}H${margin.left + inner.w}` }, svg);
    const curves = drawn("g", { "clip-path": `url(#clip${view.number})` }, svg);
    for (const [name, value] of Object.entries(view.chart.references)) {
      if (value === null || value > high || (view.log && value <= 0)) continue;
      const y = view.toY(value);
      drawn("line", { class: "reference", x1: margin.left, x2: margin.left + inner.w, y1: y, y2: y }, curves);
      drawn("text", { class: "tick", x: margin.left + inner.w - 4, y: y - 4, "text-anchor": "end" }, svg)
        .textContent = `${name} ${short(value, 4)}`;
    }
    for (const series of view.chart.series) if (isShown(view, series)) drawSeries(view, series, curves);
    view.cursor = drawn("g", {}, svg);
  }
  function drawSeries(view, series, parent) {
    const colour = colourOf(view, series), x = points(series);
    if (series.kind === "marks") {
      x.forEach((place) => {
        const px = view.toX(place), y = margin.top;
        drawn("path", { class: `mark c${colour}`, d: `M${px - 5} ${y + 9}L${px} ${y}L${px + 5} ${y + 9}Z` }, parent);
      });
      return;
    }
    drawn("path", { class: `curve ${series.kind} c${colour}`, d: path(view, series), "stroke-width":
      series.kind === "faint" ? 1 : series.kind === "points" ? widthOf(series) * 0.6 : widthOf(series) }, parent);
    const few = series.y.filter((y) => y !== null).length < 80;
    if (series.kind !== "points" || !few) return;
    series.y.forEach((y, i) => {
      if (y === null || (view.log && y <= 0)) return;
      drawn("circle", { class: `dot c${colour}`, cx: view.toX(x[i]), cy: view.toY(y), r: 1.6 + widthOf(series) }, parent);
    });
  }
  function drawAll() { views.filter((view) => view.box.offsetParent !== null).forEach(draw); }

  // ---- Values under the pointer ----
  function nearest(series, place) {
    let best = -1, distance = Infinity;
    points(series).forEach((x, i) => {
      const d = Math.abs(x - place);
      if (series.y[i] !== null && d < distance) [best, distance] = [i, d];
    });
    return best;
  }
  function showValues(view, place) {
    view.place = place;
    view.cursor.replaceChildren();
    const px = view.toX(place);
    drawn("line", { class: "cursor", x1: px, x2: px, y1: margin.top, y2: margin.top + view.inner.h }, view.cursor);
    view.tip.replaceChildren();
    element("div", { className: "place", textContent: `${placeText(place, 4)} ${state.axis === "time" ? "" : data.axes[state.axis]}` }, view.tip);
    for (const series of view.chart.series) {
      if (series.kind === "marks" || !isShown(view, series)) continue;
      const i = nearest(series, place);
      if (i < 0) continue;
      const x = view.toX(points(series)[i]), y = view.toY(series.y[i]);
      if (x < margin.left - 1 || x > margin.left + view.inner.w + 1) continue;
      if (series.kind !== "faint" && !(view.log && series.y[i] <= 0))
        drawn("circle", { class: `dot c${colourOf(view, series)}`, cx: x, cy: y, r: 4 }, view.cursor);
      const row = element("div", {}, view.tip);
      element("span", { className: `swatch c${colourOf(view, series)}` }, row);
      row.append(`${several ? `${data.runs[series.run]}: ` : ""}${series.name} ${short(series.y[i], 5)}`);
    }
    view.tip.hidden = false;
    const room = view.box.clientWidth - view.tip.offsetWidth;
    view.tip.style.left = `${Math.max(0, Math.min(room, px > view.box.clientWidth / 2 ? px - view.tip.offsetWidth - 12 : px + 12))}px`;
  }
  function hideValues(view) {
    view.tip.hidden = true;
    view.cursor.replaceChildren();
  }
  function zoom(range) {
    if (range) {
      const [, high] = fullRange();
      range = [Math.max(0, range[0]), Math.min(high, range[1])];
      if (!(range[1] - range[0] > high * 1e-6)) return;
    }
    state.range = range;
    reset.disabled = !range;
    drawAll();
  }
  function listen(view) {
    const svg = view.svg;
    let start = null, band = null;
    const at = (event) => {
      const px = event.clientX - svg.getBoundingClientRect().left;
      return view.fromX(Math.max(margin.left, Math.min(margin.left + view.inner.w, px)));
    };
    svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || event.pointerType === "touch") return;
      start = at(event);
      svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", (event) => {
      showValues(view, at(event));
      if (start === null) return;
      const [a, b] = [view.toX(start), view.toX(at(event))].sort((p, q) => p - q);
      band = drawn("rect", { class: "band", x: a, y: margin.top, width: b - a, height: view.inner.h }, view.cursor);
    });
    svg.addEventListener("pointerup", (event) => {
      const range = start === null ? null : [start, at(event)].sort((p, q) => p - q);
      const wide = range && view.toX(range[1]) - view.toX(range[0]) > 6;
      if (band) band.remove();
      start = band = null;
      if (wide) zoom(range);
    });
    svg.addEventListener("pointercancel", () => { start = null; });
    svg.addEventListener("pointerleave", () => hideValues(view));
    svg.addEventListener("blur", () => hideValues(view));
    svg.addEventListener("dblclick", () => zoom(null));
    svg.addEventListener("keydown", (event) => {
      const [left, right] = view.range, width = right - left;
      const place = Math.max(left, Math.min(right, view.place ?? (left + right) / 2));
      const actions = {
        ArrowLeft: () => showValues(view, Math.max(left, place - width / 50)),
        ArrowRight: () => showValues(view, Math.min(right, place + width / 50)),
        "+": () => zoom([place - width / 4, place + width / 4]),
        "-": () => zoom([place - width, place + width]),
        Escape: () => zoom(null),
      };
      if (!actions[event.key]) return;
      event.preventDefault();
      actions[event.key]();
    });
  }

  // ---- The page ----
  function build(box, number) {
    const chart = data.charts[number];
    const lines = [...new Set(chart.series.filter((s) => s.kind !== "faint" && s.kind !== "marks").map((s) => s.name))];
    const view = { box, chart, number, lines, log: chart.log, hidden: new Set(), wide: box.classList.contains("wide") };
    const bar = element("div", { className: "bar" }, box);
    const names = [...new Set(chart.series.map((series) => series.name))];
    if (names.length > 1)
      for (const name of names) {
        const series = chart.series.find((one) => one.name === name);
        const last = series.y.filter((y) => y !== null).pop();
        const value = !several && series.kind !== "marks" && last !== undefined ? ` ${short(last, 4)}` : "";
        toggle(name + value, several ? 0 : colourOf(view, series), true, bar, (shown) => {
          view.hidden[shown ? "delete" : "add"](name);
          draw(view);
        }, series.kind);
      }
    if (chart.series.some((series) => series.y.some((y) => y > 0)))
      toggle("log", 0, view.log, bar, (log) => { view.log = log; draw(view); }, "log");
    view.svg = drawn("svg", { tabindex: 0, role: "img", "aria-label":
      `${chart.title}. Arrow keys show values, plus and minus zoom, Escape resets.` }, box);
    view.tip = element("div", { className: "tip", hidden: true }, box);
    view.tip.setAttribute("role", "status");
    views.push(view);
    listen(view);
  }
  const controls = document.getElementById("controls");
  controls.hidden = !data.charts.length;
  const label = element("label", { textContent: "Horizontal axis " }, controls);
  const select = element("select", {}, label);
  for (const name of axisNames) element("option", { value: name, textContent: data.axes[name] }, select);
  select.addEventListener("change", () => { state.axis = select.value; zoom(null); });
  const reset = element("button", { type: "button", textContent: "Reset zoom", disabled: true }, controls);
  reset.addEventListener("click", () => zoom(null));
  if (several)
    data.runs.forEach((name, run) => toggle(name, (run % 7) + 1, true, controls, (shown) => {
      state.hiddenRuns[shown ? "delete" : "add"](run);
      drawAll();
    }));
  element("span", { className: "hint", textContent: "Drag to zoom, double click to reset." }, controls);
  document.querySelectorAll("[data-chart]").forEach((box) => build(box, +box.dataset.chart));
  drawAll();
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth !== width) drawAll();
    width = window.innerWidth;
  });
  document.querySelectorAll("details").forEach((box) => box.addEventListener("toggle", drawAll));
})();
