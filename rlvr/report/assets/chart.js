"use strict";
/* One chart: lines (with an optional band) or stacked bars, redrawn at the width it has.
   All charts share one view, so hovering over one reads the same place off all of them, and
   dragging in one zooms all of them. */

const HEIGHT = 190;
const DRAG = 6;

Report.Chart = class {
  /* `load` gives the series of a view; `act` tells the page what the reader did:
     {at, now} for the cursor, "zoom" when the view's zoom has changed. */
  constructor(plan, view, load, act) {
    this.plan = plan;
    this.view = view;
    this.load = load;
    this.act = act;
    this.series = load(view);
    this.build();
  }

  reload() {
    this.series = this.load(this.view);
    this.canvas.setAttribute("aria-label", this.describe());
    this.fillReadout();
  }

  build() {
    const { make } = Report;
    this.canvas = Report.svg("svg", {
      role: "img",
      tabindex: "0",
      "aria-label": this.describe(),
      pointerdown: (event) => this.press(event),
      pointermove: (event) => this.moved(event),
      pointerup: (event) => this.release(event),
      pointercancel: () => this.drop(),
      pointerleave: () => this.act({ at: null }),
      dblclick: () => { this.view.zoom = null; this.act("zoom"); },
      keydown: (event) => this.key(event),
      blur: () => this.act({ at: null }),
    });
    this.readout = make("div", { class: "readout" });
    this.note = make("p", { class: "help note", hidden: true });
    this.element = make(
      "figure",
      { class: `chart ${this.plan.kind || "lines"}`, "data-chart": this.plan.key || this.plan.title },
      make("figcaption", {}, make("h3", { title: this.plan.help || this.plan.metric }, this.plan.title)),
      this.readout,
      make("div", {}, this.canvas, this.note),
      make("p", { class: "help" }, this.plan.metric && this.plan.metric !== this.plan.help ? `${this.plan.help} ${this.plan.metric}`.trim() : this.plan.help),
    );
    this.fillReadout();
  }

  show(value) {
    return Report.number(value, this.plan.format);
  }

  describe() {
    const parts = this.series.filter((item) => item.raw.length).map((item) => {
      const tell = (point) => `${this.show(point[1])} at step ${point[4]}`;
      return `${item.label}: ${tell(item.raw[0])}, ${tell(item.raw[item.raw.length - 1])}`;
    });
    return `${this.plan.title}. ${parts.join("; ")}. Arrow keys read single steps, plus and minus zoom, 0 shows all.`;
  }

  fillReadout() {
    const { view } = this;
    const ends = this.series.map((item) => this.end(item)).filter(Boolean).map((point) => point[0]);
    const at = view.at === null ? (ends.length ? Math.max(...ends) : null) : view.at;
    this.readout.replaceChildren(
      Report.make("span", { class: "step" }, at === null ? "" : Report.AXES[view.axis].show(at)),
      ...this.series.map((item) => this.keyOf(item)),
    );
  }

  /* The swatch, the name and the value of a series under the cursor, or its last one. */
  keyOf(item) {
    const point = this.view.at === null ? this.end(item) : this.pointAt(item);
    const text = point ? this.show(point[1]) : "\u2013";
    return Report.make(
      "span",
      { class: "key" },
      Report.make("i", { class: `swatch ${item.color} ${item.style}` }),
      Report.make("span", { class: "name" }, item.label),
      Report.make("b", {}, point && ["own", "interval"].includes(item.bandOf) ? text + this.spread(item, point) : text),
    );
  }

  /* The last point of a series that is in view; null if there is none. */
  end(item) {
    const [low, high] = this.view.domain();
    const found = item.raw.findLast((point) => point[0] <= high);
    return found && found[0] >= low ? found : null;
  }

  spread(item, point) {
    if (item.bandOf === "range" || item.bandOf === "interval") return ` (${this.show(point[2])} to ${this.show(point[3])})`;
    return item.bandOf ? ` \u00b1 ${this.show(point[3] - point[1])}` : "";
  }

  /* The point of a series at the cursor: at that very step, or, along other axes, on which runs
     have no places in common, the nearest one while the run was going on. */
  pointAt(item) {
    const { at, axis } = this.view;
    const i = Report.nearest(item.raw, at);
    if (i < 0) return null;
    const there = axis === "steps"
      ? Math.abs(item.raw[i][0] - at) < 1e-9
      : at >= item.raw[0][0] && at <= item.raw[item.raw.length - 1][0];
    return there ? item.raw[i] : null;
  }

  draw() {
    if (!this.element.clientWidth) return;
    const width = Math.max(160, this.element.clientWidth);
    this.log = this.view.log && this.plan.kind !== "stack";
    const [low, high] = this.range();
    this.yTicks = this.log ? Report.logTicks(low, high, 5) : Report.ticks(low, high, 5, this.plan.format === "count");
    const labels = this.yTicks.map((tick) => Report.tickLabel(tick, this.plan.format));
    const left = 10 + 6.6 * Math.max(2, ...labels.map((label) => label.length));
    const box = { left, right: width - 8, top: 8, bottom: HEIGHT - 24 };
    this.box = box;
    const [first, last] = this.view.domain();
    const place = this.log ? Math.log10 : (value) => value;
    this.x = (x) => box.left + ((x - first) / (last - first)) * (box.right - box.left);
    this.y = (value) => box.bottom - ((place(value) - place(low)) / (place(high) - place(low))) * (box.bottom - box.top);
    Report.set(this.canvas, { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}` });
    this.cursor = Report.svg("g", { class: "cursor" });
    this.canvas.replaceChildren(...this.axes(labels), ...this.clipped([...this.alarms(), ...this.marks()]), this.cursor);
    this.moveCursor();
  }

  /* What is drawn of a list of points: those within the zoom with a neighbour on both sides, and
     on a logarithmic axis only those above zero. */
  visible(points) {
    const kept = this.log ? points.filter((point) => point[1] > 0) : points;
    if (!this.view.zoom) return kept;
    const [low, high] = this.view.zoom;
    let from = kept.findIndex((point) => point[0] >= low);
    if (from < 0) from = kept.length;
    let to = from;
    while (to < kept.length && kept[to][0] <= high) to += 1;
    return kept.slice(Math.max(0, from - 1), to + 1);
  }

  range() {
    if (this.plan.kind === "stack") return [0, this.tallest() * 1.05 || 1];
    const [first, last] = this.view.domain();
    const within = (point) => point[0] >= first && point[0] <= last;
    let low = Infinity;
    let high = -Infinity;
    for (const item of this.series) {
      for (const list of [item.raw, item.points]) {
        for (const point of this.visible(list)) {
          if (!within(point)) continue;
          low = Math.min(low, this.log && point[2] <= 0 ? point[1] : point[2]);
          high = Math.max(high, point[3]);
        }
      }
    }
    const hidden = this.log ? this.series.reduce((sum, item) => sum + item.raw.filter((point) => point[1] <= 0).length, 0) : 0;
    this.note.hidden = !hidden;
    this.note.textContent = hidden ? `${hidden} values of 0 or less have no place on a logarithmic axis.` : "";
    if (low > high) return this.log ? [0.1, 1] : [0, 1];
    if (this.log) return low === high ? [low / 2, high * 2] : [low / 1.1, high * 1.1];
    if (this.plan.format === "fraction" && !this.view.zoom) return [Math.min(0, low), high > 0.5 ? Math.max(1, high) : high * 1.1 || 0.1];
    if (low >= 0 && (low < 0.6 * high || this.plan.format === "count")) low = 0;
    // Smoothing a constant rounds.
    const flat = high - low <= 1e-9 * Math.abs(high);
    const pad = (flat ? 0 : (high - low) * 0.06) || Math.abs(high) * 0.1 || 1;
    high += pad;
    return [low === 0 ? 0 : low - pad, high];
  }

  axes(labels) {
    const { box, view } = this;
    const lines = this.yTicks.flatMap((tick, i) => [
      Report.svg("line", { class: "grid", x1: box.left, x2: box.right, y1: this.y(tick), y2: this.y(tick) }),
      Report.svg("text", { class: "tick", x: box.left - 6, y: this.y(tick) + 4, "text-anchor": "end" }, labels[i]),
    ]);
    const [first, last] = view.domain();
    const axis = Report.AXES[view.axis];
    const unit = axis.unit(last - first);
    const ticks = Report.ticks(first / unit, last / unit, (box.right - box.left) / 80, view.axis === "steps").map((tick) => tick * unit);
    const below = ticks.map((tick) => {
      const x = this.x(tick);
      const anchor = x > box.right - 14 ? "end" : "middle";
      return Report.svg("text", { class: "tick", x: anchor === "end" ? box.right : x, y: box.bottom + 17, "text-anchor": anchor }, axis.tick(tick, unit));
    });
    const base = Report.svg("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom });
    return [...lines, base, ...below];
  }

  /* Marks beyond the zoom are cut off at the edges of the plot. */
  clipped(marks) {
    if (!this.view.zoom) return marks;
    const { left, right, top, bottom } = this.box;
    const frame = { x: left, y: top, width: right - left, height: bottom - top };
    return [Report.svg("svg", { class: "clip", ...frame, viewBox: `${left} ${top} ${frame.width} ${frame.height}` }, ...marks)];
  }

  marks() {
    if (this.plan.kind === "stack") return this.bars();
    return [...this.series].reverse().flatMap((item) => this.line(item));
  }

  /* Shades where an alarm about this chart held. */
  alarms() {
    const run = this.view.runs[0];
    const xs = run[this.view.axis];
    const [first, last] = this.view.domain();
    const { left, right, top, bottom } = this.box;
    return (this.plan.alarms || []).flatMap((name) => {
      const held = run.columns[name] || [];
      const shades = [];
      for (let from = 0; from < held.length; from += 1) {
        if (held[from] !== 1) continue;
        let to = from;
        while (held[to + 1] === 1) to += 1;
        const low = Math.max(left, this.x(xs[from]));
        const high = Math.min(right, this.x(xs[Math.min(to + 1, xs.length - 1)]));
        if (xs[from] <= last && xs[to] >= first) {
          const shade = Report.svg("rect", { class: "alarm", x: low, y: top, width: Math.max(2, high - low), height: bottom - top });
          shade.append(Report.svg("title", {}, `${name}: steps ${run.steps[from]} to ${run.steps[to]}`));
          shades.push(shade);
        }
        from = to;
      }
      return shades;
    });
  }

  /* Stretches of a list of points without a value that is not finite in between. */
  stretches(item, points) {
    if (item.solid || !item.breaks.length) return points.length ? [points] : [];
    const edges = [...item.breaks.map(([x]) => x), Infinity];
    let rest = points;
    return edges.map((edge) => {
      const part = rest.filter((point) => point[0] < edge);
      rest = rest.slice(part.length);
      return part;
    }).filter((part) => part.length);
  }

  line(item) {
    const marks = [];
    const smooth = item.points !== item.raw && this.view.weight > 0;
    const room = this.box.right - this.box.left;
    const draw = (points, faint) => {
      for (const part of this.stretches(item, this.visible(points))) {
        const thin = Report.thin(part, room);
        if (thin.length > 1) marks.push(Report.svg("path", { class: `line ${item.color} ${item.style}${faint ? " raw" : ""}`, d: this.path(thin) }));
        if (!faint && (item.points.length <= 30 || thin.length === 1)) marks.push(...this.dots(thin, item.color));
      }
    };
    if (item.bandOf) {
      const points = ["own", "interval"].includes(item.bandOf) ? item.raw : item.points;
      for (const part of this.stretches(item, this.visible(points))) marks.push(this.band(part, item.color, room));
    }
    if (smooth) draw(item.raw, true);
    draw(item.points, false);
    for (const [x, step] of item.breaks) {
      if (x >= this.view.domain()[0] && x <= this.view.domain()[1]) marks.push(this.cross(x, step, item));
    }
    return marks;
  }

  path(points) {
    const text = points.map((point) => `${this.x(point[0]).toFixed(1)},${this.y(point[1]).toFixed(1)}`);
    return `M${text.join("L")}`;
  }

  band(part, color, room) {
    const least = this.log ? Math.min(...this.yTicks) : -Infinity;
    const up = Report.thin(part.map((point) => [point[0], point[3]]), room);
    const down = Report.thin(part.map((point) => [point[0], Math.max(least, point[2])]), room).reverse();
    return Report.svg("path", { class: `band ${color}`, d: `${this.path([...up, ...down])}Z` });
  }

  dots(points, color) {
    return points.map((point) =>
      Report.svg("circle", { class: `dot ${color}`, cx: this.x(point[0]), cy: this.y(point[1]), r: 3 }),
    );
  }

  cross(x, step, item) {
    const mark = Report.svg("text", { class: `broken ${item.color}`, x: this.x(x), y: this.box.bottom - 4, "text-anchor": "middle" }, "\u00d7");
    mark.append(Report.svg("title", {}, `${item.metric} is not a finite number at step ${step}`));
    return mark;
  }

  /* Mean seconds per step of each phase, in as many bars as have room. */
  bars() {
    const { columns } = this.view.runs[0];
    const xs = this.view.runs[0][this.view.axis];
    const [first, last] = this.view.domain();
    const room = Math.max(1, Math.floor((this.box.right - this.box.left) / 5));
    const used = xs.map((_, i) => i).filter((i) => xs[i] >= first && xs[i] <= last && this.series.some((item) => typeof columns[item.metric][i] === "number"));
    const size = Math.ceil(used.length / room);
    const marks = [];
    const span = Math.max(1, Math.ceil(used.length / size));
    const thick = Math.max(1, Math.min(28, (this.box.right - this.box.left) / span - 1));
    for (let start = 0; start < used.length; start += size) {
      const bucket = used.slice(start, start + size);
      const middle = (xs[bucket[0]] + xs[bucket[bucket.length - 1]]) / 2;
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
    const { columns } = this.view.runs[0];
    const xs = this.view.runs[0][this.view.axis];
    const [first, last] = this.view.domain();
    return xs.reduce((most, x, i) => {
      if (x < first || x > last) return most;
      return Math.max(most, this.series.reduce((sum, item) => sum + (columns[item.metric][i] || 0), 0));
    }, 0);
  }

  valueAt(event) {
    const { left, right } = this.box;
    const [low, high] = this.view.domain();
    const offset = event.clientX - this.canvas.getBoundingClientRect().left;
    return low + Math.min(1, Math.max(0, (offset - left) / (right - left))) * (high - low);
  }

  /* The place of the point nearest to a value of the axis, of any series; null without points. */
  nearest(wanted) {
    const [low, high] = this.view.domain();
    let best = null;
    for (const item of this.series) {
      const i = Report.nearest(item.raw, wanted);
      if (i < 0) continue;
      const x = item.raw[i][0];
      if (x >= low && x <= high && (best === null || Math.abs(x - wanted) < Math.abs(best - wanted))) best = x;
    }
    return best;
  }

  press(event) {
    if (!this.box || event.button !== 0 || event.pointerType === "touch") return;
    this.from = { x: event.clientX, value: this.valueAt(event) };
    this.canvas.setPointerCapture(event.pointerId);
  }

  moved(event) {
    if (!this.box) return;
    const value = this.valueAt(event);
    if (this.from && Math.abs(event.clientX - this.from.x) > DRAG) this.select(this.from.value, value);
    this.act({ at: this.nearest(value), by: this, x: event.clientX, y: event.clientY });
  }

  select(a, b) {
    if (!this.selection?.isConnected) {
      this.selection = Report.svg("rect", { class: "selection" });
      this.canvas.append(this.selection);
    }
    const [low, high] = [this.x(Math.min(a, b)), this.x(Math.max(a, b))];
    Report.set(this.selection, { x: low, y: this.box.top, width: high - low, height: this.box.bottom - this.box.top });
  }

  release(event) {
    const { from } = this;
    this.drop();
    if (!from || Math.abs(event.clientX - from.x) <= DRAG) return;
    const to = this.valueAt(event);
    this.view.setZoom(Math.min(from.value, to), Math.max(from.value, to));
    this.act("zoom");
  }

  drop() {
    this.from = null;
    this.selection?.remove();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const zoom = { "+": 0.5, "=": 0.5, "-": 2, 0: null }[event.key];
    if (event.key === "Escape" && this.from) this.drop();
    else if (zoom !== undefined) {
      if (zoom === null) this.view.zoom = null;
      else this.view.scale(zoom);
      event.preventDefault();
      this.act("zoom");
    } else this.walk(event);
  }

  walk(event) {
    const stops = this.view.stops();
    const found = stops.indexOf(this.view.at);
    const now = found < 0 ? stops.length - 1 : found;
    const next = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: stops.length - 1 }[event.key];
    if (next === undefined || !stops.length) return;
    event.preventDefault();
    this.act({ at: stops[Math.min(stops.length - 1, Math.max(0, next))], now: true });
  }

  showCursor() {
    this.fillReadout();
    this.moveCursor();
  }

  moveCursor() {
    if (!this.cursor) return;
    this.cursor.replaceChildren();
    const { at } = this.view;
    const [low, high] = this.view.domain();
    if (at === null || at < low || at > high) return;
    const x = this.x(at);
    this.cursor.append(Report.svg("line", { class: "hair", x1: x, x2: x, y1: this.box.top, y2: this.box.bottom }));
    if (this.plan.kind === "stack") return;
    for (const item of this.series) {
      const point = this.pointAt(item);
      if (point && (!this.log || point[1] > 0)) this.cursor.append(...this.dots([point], item.color));
    }
  }
};
