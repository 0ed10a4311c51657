"use strict";
/* The timeline: one row for each lane, a bar for each phase, a few steps at a time. */

Report.Timeline = class {
  constructor(host, timeline) {
    this.host = host;
    this.timeline = timeline;
    this.steps = [...new Set(timeline.spans.map((span) => span[2]))].sort((a, b) => a - b);
    this.shown = 6;
    this.first = Math.max(0, this.steps.length - this.shown);
    if (this.steps.length) this.build();
  }

  build() {
    const { make } = Report;
    const button = (text, by) => make("button", { type: "button", click: () => this.move(by) }, text);
    this.earlier = button("Earlier", -this.shown);
    this.later = button("Later", this.shown);
    this.range = make("span", { class: "count" });
    this.canvas = Report.svg("svg", { role: "img" });
    const legend = make(
      "div",
      { class: "readout" },
      ...this.timeline.phases.map((phase) =>
        make("span", { class: "key" }, make("i", { class: `swatch c${phase.color}` }), make("span", { class: "name" }, phase.name)),
      ),
    );
    const help = "What ran when, in seconds of real time. Bars of two lanes above each other ran side by side; what waits, waits for the other lane.";
    this.element = make("figure", { class: "timeline stack" }, legend, this.canvas, make("p", { class: "help" }, help));
    this.host.append(
      make("div", { class: "bar-top" }, make("h3", { class: "section" }, "Timeline"), make("div", { class: "actions" }, this.range, " ", this.earlier, " ", this.later)),
      this.element,
    );
    this.draw();
    new ResizeObserver(() => requestAnimationFrame(() => this.draw())).observe(this.host);
  }

  move(by) {
    this.first = Math.min(Math.max(0, this.first + by), Math.max(0, this.steps.length - this.shown));
    this.draw();
  }

  draw() {
    const { lanes, phases, spans } = this.timeline;
    const chosen = this.steps.slice(this.first, this.first + this.shown);
    const visible = spans.filter((span) => span[2] >= chosen[0] && span[2] <= chosen[chosen.length - 1]);
    const begin = visible.reduce((low, span) => Math.min(low, span[3]), Infinity);
    const end = visible.reduce((high, span) => Math.max(high, span[4]), begin + 1e-3);
    const width = Math.max(200, this.element.clientWidth);
    const [left, right, row, top] = [64, width - 8, 30, 6];
    const bottom = top + row * lanes.length;
    const x = (time) => left + ((time - begin) / (end - begin)) * (right - left);
    const bars = visible.map(([lane, phase, step, from, to]) =>
      Report.svg(
        "rect",
        { class: `bar c${phases[phase].color}`, "data-phase": phases[phase].name, x: x(from), y: top + row * lane + 4, width: Math.max(1, x(to) - x(from) - 0.5), height: row - 8 },
        Report.svg("title", {}, `${lanes[lane]}, step ${step}: ${phases[phase].name}, ${Report.number(to - from, "seconds")}`),
      ),
    );
    const names = lanes.map((lane, i) =>
      Report.svg("text", { class: "tick", x: left - 8, y: top + row * i + row / 2 + 4, "text-anchor": "end" }, lane),
    );
    const ticks = Report.ticks(0, end - begin, (right - left) / 90).map((tick) =>
      Report.svg("text", { class: "tick", x: x(begin + tick), y: bottom + 16, "text-anchor": "middle" }, Report.tickLabel(tick, "seconds")),
    );
    const base = Report.svg("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom });
    const label = `steps ${chosen[0]} to ${chosen[chosen.length - 1]}`;
    Report.set(this.canvas, { width, height: bottom + 24, viewBox: `0 0 ${width} ${bottom + 24}`, "aria-label": `Timeline, ${label}` });
    this.canvas.replaceChildren(base, ...bars, ...names, ...ticks);
    this.range.textContent = label;
    this.earlier.disabled = this.first === 0;
    this.later.disabled = this.first + this.shown >= this.steps.length;
  }
};
