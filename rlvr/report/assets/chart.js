"use strict";
/* One chart: lines (with an optional band) or stacked bars, redrawn at the width it has.
   All charts share the step axis, so hovering over one reads the same step off all of them. */

Report.Chart = class {
  constructor(plan, report, hover) {
    this.plan = plan;
    this.report = report;
    this.hover = hover;
    this.smoothed = false;
    this.at = null;
    const steps = report.steps;
    this.domain = [steps[0], Math.max(steps[steps.length - 1], steps[0] + 1)];
    this.series = plan.series.map((item) => this.load(item));
    this.build();
  }

  /* Points in step order; null where the value was not a finite number and the line breaks. */
  load(item) {
    const { steps, columns, notFinite } = this.report;
    const broken = new Set(notFinite[item.metric] || []);
    const bands = item.band ? columns[item.band] : null;
    const points = [];
    const breaks = [];
    columns[item.metric].forEach((value, i) => {
      if (value !== null) points.push([steps[i], value, bands && bands[i] !== null ? bands[i] : 0]);
      else if (broken.has(steps[i])) breaks.push(steps[i]);
    });
    return { ...item, points, breaks, color: `${this.plan.shades ? "shade" : "c"}${item.color}`, hasBand: Boolean(bands) };
  }

  build() {
    const { make } = Report;
    this.canvas = Report.svg("svg", {
      role: "img",
      tabindex: "0",
      "aria-label": this.describe(),
      pointermove: (event) => this.hover(this.stepAt(event.clientX - this.canvas.getBoundingClientRect().left)),
      pointerleave: () => this.hover(null),
      keydown: (event) => this.key(event),
      blur: () => this.hover(null),
    });
    this.readout = make("div", { class: "readout" });
    this.element = make(
      "figure",
      { class: `chart ${this.plan.kind}`, "data-chart": this.plan.title },
      make("figcaption", {}, make("h3", { title: this.plan.help }, this.plan.title)),
      this.readout,
      this.canvas,
      make("p", { class: "help" }, this.plan.help),
    );
    this.fillReadout();
  }

  describe() {
    const parts = this.series.map((item) => {
      const first = item.points[0];
      const last = item.points[item.points.length - 1];
      const show = (point) => `${Report.number(point[1], this.plan.format)} at step ${point[0]}`;
      return `${item.label}: ${show(first)}, ${show(last)}`;
    });
    return `${this.plan.title}. ${parts.join("; ")}. Arrow keys read single steps.`;
  }

  fillReadout() {
    this.readout.replaceChildren(
      ...this.series.map((item) => {
        const point = this.at === null ? item.points[item.points.length - 1] : this.pointAt(item);
        const value = point ? Report.number(point[1], this.plan.format) : "\u2013";
        const band = point && item.hasBand ? ` \u00b1 ${Report.number(point[2], this.plan.format)}` : "";
        return Report.make(
          "span",
          { class: "key" },
          Report.make("i", { class: `swatch ${item.color}${this.dashed(item) ? " dashed" : ""}` }),
          Report.make("span", { class: "name" }, item.label),
          Report.make("b", {}, value + band),
        );
      }),
    );
    const last = Math.max(...this.series.map((item) => item.points[item.points.length - 1][0]));
    this.readout.prepend(
      Report.make("span", { class: "step" }, `step ${this.at === null ? last : this.at}`),
    );
  }

  dashed(item) {
    return this.plan.kind === "lines" && item.dashed;
  }

  pointAt(item) {
    return item.points.find((point) => point[0] === this.at) || null;
  }

  draw() {
    const width = Math.max(160, this.element.clientWidth);
    const height = 190;
    const [low, high] = this.range();
    this.yTicks = Report.ticks(low, high, 5, this.plan.format === "count");
    const labels = this.yTicks.map((tick) => Report.tickLabel(tick, this.plan.format));
    const left = 10 + 6.6 * Math.max(2, ...labels.map((label) => label.length));
    const box = { left, right: width - 8, top: 8, bottom: height - 24 };
    this.box = box;
    this.x = (step) =>
      box.left +
      ((step - this.domain[0]) / (this.domain[1] - this.domain[0])) * (box.right - box.left);
    this.y = (value) => box.bottom - ((value - low) / (high - low)) * (box.bottom - box.top);
    Report.set(this.canvas, { width, height, viewBox: `0 0 ${width} ${height}` });
    this.canvas.replaceChildren(...this.axes(labels), ...this.marks(), this.cursorLayer());
    this.moveCursor();
  }

  range() {
    if (this.plan.kind === "stack") return [0, this.tallest() * 1.05 || 1];
    const values = this.series.flatMap((item) =>
      item.points.flatMap((point) => [point[1] - point[2], point[1] + point[2]]),
    );
    let low = values.reduce((a, b) => Math.min(a, b));
    let high = values.reduce((a, b) => Math.max(a, b));
    if (this.plan.format === "fraction") return [0, high > 0.5 ? Math.max(1, high) : high * 1.1 || 0.1];
    if (low >= 0 && (low < 0.6 * high || this.plan.format === "count")) low = 0;
    const pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    high += pad;
    return [low === 0 ? 0 : low - pad, high];
  }

  axes(labels) {
    const { box } = this;
    const lines = this.yTicks.flatMap((tick, i) => [
      Report.svg("line", { class: "grid", x1: box.left, x2: box.right, y1: this.y(tick), y2: this.y(tick) }),
      Report.svg("text", { class: "tick", x: box.left - 6, y: this.y(tick) + 4, "text-anchor": "end" }, labels[i]),
    ]);
    const ticks = Report.ticks(this.domain[0], this.domain[1], (box.right - box.left) / 80, true);
    const below = ticks.map((tick) =>
      Report.svg(
        "text",
        { class: "tick", x: this.x(tick), y: box.bottom + 17, "text-anchor": this.x(tick) > box.right - 12 ? "end" : "middle" },
        Report.tickLabel(tick),
      ),
    );
    const base = Report.svg("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom });
    return [...lines, base, ...below];
  }

  marks() {
    if (this.plan.kind === "stack") return this.bars();
    return [...this.series].reverse().flatMap((item) => this.line(item));
  }

  /* Stretches of a series without a value that is not finite in between. */
  stretches(item) {
    const edges = [...item.breaks, Infinity];
    let rest = item.points;
    return edges.map((edge) => {
      const part = rest.filter((point) => point[0] < edge);
      rest = rest.slice(part.length);
      return part;
    }).filter((part) => part.length);
  }

  line(item) {
    const marks = [];
    const smooth = this.smoothed && item.points.length >= 8;
    const stroke = `${item.color}${this.dashed(item) ? " dashed" : ""}`;
    for (const part of this.stretches(item)) {
      const raw = Report.thin(part, this.box.right - this.box.left);
      if (item.hasBand) marks.push(this.band(part, item.color));
      if (raw.length > 1) {
        marks.push(Report.svg("path", { class: `line ${stroke}${smooth ? " raw" : ""}`, d: this.path(raw) }));
      }
      if (smooth) {
        const values = Report.smooth(part.map((point) => point[1]), 0.8);
        const even = part.map((point, i) => [point[0], values[i]]);
        marks.push(Report.svg("path", { class: `line ${stroke}`, d: this.path(Report.thin(even, this.box.right - this.box.left)) }));
      }
      if (item.points.length <= 30 || raw.length === 1) marks.push(...this.dots(raw, item.color));
    }
    for (const step of item.breaks) marks.push(this.cross(step, item));
    return marks;
  }

  path(points) {
    const text = points.map((point) => `${this.x(point[0]).toFixed(1)},${this.y(point[1]).toFixed(1)}`);
    return `M${text.join("L")}`;
  }

  band(part, color) {
    const up = part.map((point) => [point[0], point[1] + point[2]]);
    const down = part.map((point) => [point[0], point[1] - point[2]]).reverse();
    return Report.svg("path", { class: `band ${color}`, d: `${this.path([...up, ...down])}Z` });
  }

  dots(points, color) {
    return points.map((point) =>
      Report.svg("circle", { class: `dot ${color}`, cx: this.x(point[0]), cy: this.y(point[1]), r: 3 }),
    );
  }

  cross(step, item) {
    const mark = Report.svg("text", { class: `broken ${item.color}`, x: this.x(step), y: this.box.bottom - 4, "text-anchor": "middle" }, "\u00d7");
    mark.append(Report.svg("title", {}, `${item.metric} is not a finite number at step ${step}`));
    return mark;
  }

  /* Mean seconds per step of each phase, in as many bars as have room. */
  bars() {
    const { steps, columns } = this.report;
    const room = Math.max(1, Math.floor((this.box.right - this.box.left) / 5));
    const used = steps.map((_, i) => i).filter((i) => this.series.some((item) => columns[item.metric][i] !== null));
    const size = Math.ceil(used.length / room);
    const marks = [];
    const span = Math.max(1, Math.ceil(used.length / size));
    const thick = Math.max(1, Math.min(28, (this.box.right - this.box.left) / span - 1));
    for (let start = 0; start < used.length; start += size) {
      const bucket = used.slice(start, start + size);
      const middle = (steps[bucket[0]] + steps[bucket[bucket.length - 1]]) / 2;
      const x = Math.min(this.box.right - thick, Math.max(this.box.left, this.x(middle) - thick / 2));
      let below = 0;
      for (const item of this.series) {
        const mean = bucket.reduce((sum, i) => sum + (columns[item.metric][i] || 0), 0) / bucket.length;
        if (mean <= 0) continue;
        const top = this.y(below + mean);
        marks.push(Report.svg("rect", { class: `bar ${item.color}`, x, y: top, width: thick, height: this.y(below) - top }));
        below += mean;
      }
    }
    return marks;
  }

  tallest() {
    const { steps, columns } = this.report;
    const sums = steps.map((_, i) => this.series.reduce((sum, item) => sum + (columns[item.metric][i] || 0), 0));
    return sums.reduce((a, b) => Math.max(a, b), 0);
  }

  cursorLayer() {
    this.cursor = Report.svg("g", { class: "cursor" });
    return this.cursor;
  }

  stepAt(offset) {
    const { left, right } = this.box;
    const share = Math.min(1, Math.max(0, (offset - left) / (right - left)));
    const wanted = this.domain[0] + share * (this.domain[1] - this.domain[0]);
    return this.nearest(wanted);
  }

  nearest(wanted) {
    let best = null;
    for (const item of this.series) {
      for (const point of item.points) {
        if (best === null || Math.abs(point[0] - wanted) < Math.abs(best - wanted)) best = point[0];
      }
    }
    return best;
  }

  key(event) {
    const { steps } = this.report;
    const now = this.at === null ? steps.length - 1 : steps.indexOf(this.at);
    const next = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: steps.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    this.hover(steps[Math.min(steps.length - 1, Math.max(0, next))], true);
  }

  show(step) {
    this.at = step;
    this.fillReadout();
    this.moveCursor();
  }

  moveCursor() {
    if (!this.cursor) return;
    this.cursor.replaceChildren();
    if (this.at === null) return;
    const x = this.x(this.at);
    this.cursor.append(Report.svg("line", { class: "hair", x1: x, x2: x, y1: this.box.top, y2: this.box.bottom }));
    if (this.plan.kind === "stack") return;
    for (const item of this.series) {
      const point = this.pointAt(item);
      if (point) this.cursor.append(...this.dots([point], item.color));
    }
  }
};
