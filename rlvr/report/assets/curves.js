"use strict";
/* The charts of a page in sections, the controls that all of them obey, and the legend. */

Report.Curves = class {
  constructor(host, report) {
    this.host = host;
    this.report = report;
    this.view = new Report.View(report);
    this.charts = [];
    this.query = "";
    this.pending = null;
    this.listeners = [];
    this.build();
  }

  build() {
    const { make } = Report;
    this.bar = make("div", { class: "controls view-controls" });
    this.legend = make("div", { class: "legend", role: "group", "aria-label": "Runs" });
    this.tools = make("div", { class: "toolbar" }, this.bar, this.legend);
    this.body = make("div", { class: "charts" });
    this.box = make("div", { class: "hover-box", "aria-hidden": "true", hidden: true });
    this.host.append(make("h2", {}, "Curves"), this.tools, this.body, this.box);
    this.drawControls();
    this.drawLegend();
    this.drawCharts();
    let width = this.host.clientWidth;
    new ResizeObserver(() => {
      if (this.host.clientWidth === width) return;
      width = this.host.clientWidth;
      requestAnimationFrame(() => this.redraw());
    }).observe(this.host);
  }

  drawControls() {
    const { make, select } = Report;
    const { view } = this;
    const change = (name) => (value) => {
      view[name] = value;
      this.refresh();
    };
    const axes = view.axes().map((name) => [name, Report.AXES[name].label]);
    const weight = make("output", {}, view.weight.toFixed(2));
    const slider = make("input", { type: "range", min: 0, max: 0.99, step: 0.01, class: "smoothing", input: () => {
      weight.textContent = Number(slider.value).toFixed(2);
      change("weight")(Number(slider.value));
    } });
    slider.value = view.weight;
    const log = make("input", { type: "checkbox", class: "log", change: () => change("log")(log.checked) });
    log.checked = view.log;
    const search = make("input", { type: "search", class: "metrics", placeholder: "name of a metric", input: () => {
      this.query = search.value.trim().toLowerCase();
      this.filter();
    } });
    search.value = this.query;
    this.reset = make("button", { type: "button", class: "reset", click: () => { view.zoom = null; this.refresh(); } }, "Show all");
    const grouped = view.groups && view.groups.some((group) => group.runs.length > 1);
    const groupings = [["range", "mean, lowest to highest"], ["std", "mean \u00b1 standard deviation"], ["single", "single runs"]];
    this.bar.replaceChildren(...[
      axes.length > 1 ? select("Horizontal axis", axes, view.axis, (value) => { view.zoom = null; view.at = null; change("axis")(value); }) : null,
      make("label", { class: "field" }, make("span", {}, "Smoothing ", weight), slider),
      grouped ? select("Seeds", groupings, view.grouping, (value) => { change("grouping")(value); this.drawLegend(); }) : null,
      make("label", { class: "toggle" }, log, " Logarithmic"),
      this.report.charts.length > 6 ? make("label", { class: "field grow" }, make("span", {}, "Metrics"), search) : null,
      this.reset,
    ].filter(Boolean));
    this.reset.disabled = !view.zoom;
  }

  drawLegend() {
    const { make } = Report;
    const { view } = this;
    this.legend.hidden = !view.groups;
    if (!view.groups) return;
    const set = (hide) => {
      view.runs.forEach((_, i) => (hide(i) ? view.hidden.add(i) : view.hidden.delete(i)));
      this.refresh();
      this.markLegend();
    };
    this.keys = view.entries().map((entry) => {
      const toggle = (event) => {
        const on = entry.runs.some((i) => view.shown(i));
        if (event.shiftKey) set((i) => !entry.runs.includes(i));
        else set((i) => (entry.runs.includes(i) ? on : !view.shown(i)));
      };
      const names = entry.runs.map((i) => view.runs[i].name).join("\n");
      const seeds = entry.runs.length > 1 ? make("small", {}, ` ${entry.runs.length} runs`) : null;
      const button = make("button", { type: "button", class: "entry", title: `${names}\nShift-click shows only this one.`, click: toggle },
        make("i", { class: `swatch ${entry.color} ${entry.style}` }), make("span", { class: "name" }, entry.label), seeds);
      return [entry, button];
    });
    const all = (text, hide) => make("button", { type: "button", class: "entry all", click: () => set(() => hide) }, text);
    this.legend.replaceChildren(...this.keys.map(([, button]) => button), all("All", false), all("None", true));
    this.markLegend();
  }

  markLegend() {
    for (const [entry, button] of this.keys) button.setAttribute("aria-pressed", String(entry.runs.some((i) => this.view.shown(i))));
  }

  drawCharts() {
    const { make } = Report;
    const { view, report } = this;
    const before = new Map(this.charts.map((chart) => [JSON.stringify(chart.given), chart]));
    this.charts = [];
    this.sections = [];
    this.body.replaceChildren();
    if (!report.charts.length) {
      this.body.append(make("p", { class: "empty" }, "No metric has been logged yet."));
      return;
    }
    let grid = null;
    let last = "";
    for (const plan of report.charts) {
      const place = `${plan.section}/${plan.group}`;
      if (place !== last) {
        const heading = make("h3", { class: "section" }, plan.group ? `${plan.section}: ${plan.group}` : plan.section);
        grid = make("div", { class: "grid-charts" });
        this.sections.push([heading, grid]);
        this.body.append(heading, grid);
        last = place;
      }
      const known = before.get(JSON.stringify(plan));
      if (known) {
        this.charts.push(known);
        grid.append(known.element);
        continue;
      }
      const load = plan.series ? () => Report.ownSeries(plan, view) : () => Report.overlay(plan.metric, view);
      const chart = new Report.Chart({ ...plan, key: plan.metric }, view, load, (what) => this.act(what));
      chart.given = plan;
      this.charts.push(chart);
      grid.append(chart.element);
    }
    this.none = make("p", { class: "empty", hidden: true }, "No metric has such a name.");
    this.body.append(this.none);
    this.filter();
  }

  filter() {
    const fits = ({ plan }) => [plan.title, plan.metric, ...(plan.series || []).map((item) => item.metric)]
      .some((text) => text && text.toLowerCase().includes(this.query));
    for (const chart of this.charts) chart.element.hidden = !fits(chart);
    for (const [heading, grid] of this.sections) {
      heading.hidden = grid.hidden = [...grid.children].every((element) => element.hidden);
    }
    if (this.none) this.none.hidden = this.charts.some((chart) => !chart.element.hidden);
    this.redraw();
  }

  /* What the reader did in a chart. A pointer moves more often than the screen is drawn; a key must
     count at once, for the next one goes on from there. */
  act(what) {
    if (what === "zoom") {
      this.refresh();
      return;
    }
    if (what.now) {
      this.pending = null;
      this.cursor(what);
      return;
    }
    if (this.pending === null) {
      requestAnimationFrame(() => {
        const waiting = this.pending;
        this.pending = null;
        if (waiting) this.cursor(waiting);
      });
    }
    this.pending = what;
  }

  cursor(what) {
    this.view.at = what.at;
    for (const chart of this.charts) chart.showCursor();
    this.hoverBox(what);
  }

  /* All runs' values under the pointer, highest first. */
  hoverBox({ at, by, x, y }) {
    const { make } = Report;
    const found = at === null || !by || !this.view.groups ? [] : by.series
      .map((item) => [item, by.pointAt(item)])
      .filter(([, point]) => point)
      .sort((a, b) => b[1][1] - a[1][1]);
    this.box.hidden = !found.length;
    if (!found.length) return;
    this.box.replaceChildren(
      make("span", { class: "step" }, Report.AXES[this.view.axis].show(at)),
      ...found.map(([item, point]) => make("span", { class: "key" },
        make("i", { class: `swatch ${item.color} ${item.style}` }),
        make("span", { class: "name" }, item.label),
        make("b", {}, by.show(point[1]) + by.spread(item, point)), this.smoothedAt(by, item, point))),
    );
    const { width, height } = this.box.getBoundingClientRect();
    const left = x + 16 + width > document.documentElement.clientWidth ? Math.max(4, x - 16 - width) : x + 16;
    const top = Math.max(4, Math.min(y + 12, window.innerHeight - height - 4));
    this.box.style.left = `${left}px`;
    this.box.style.top = `${top}px`;
  }

  /* The smoothed value beside the logged one. */
  smoothedAt(chart, item, point) {
    if (item.points === item.raw || !this.view.weight) return null;
    const even = item.points.find((other) => other[4] === point[4]);
    return even ? Report.make("small", {}, `smoothed ${chart.show(even[1])}`) : null;
  }

  /* Settings or values have changed. */
  refresh() {
    for (const chart of this.charts) chart.reload();
    this.reset.disabled = !this.view.zoom;
    this.redraw();
    for (const listener of this.listeners) listener();
  }

  redraw() {
    for (const chart of this.charts) chart.draw();
  }

  /* The page's values have grown; there may be other metrics now. What is in view stays there. */
  renewed(charts) {
    const places = [...document.querySelectorAll("figure.chart, main > section:not(#curves)")];
    const anchor = places.find((element) => element.getBoundingClientRect().bottom > 0);
    const top = anchor?.getBoundingClientRect().top;
    this.take(charts);
    if (anchor?.isConnected) scrollBy(0, anchor.getBoundingClientRect().top - top);
  }

  take(charts) {
    this.view.changed();
    const names = (plans) => JSON.stringify(plans.map((plan) => [plan.title, plan.metric, plan.series]));
    const same = names(charts) === names(this.report.charts);
    this.report.charts = charts;
    if (!same) this.drawCharts();
    const axes = this.bar.querySelector("select")?.options.length || 1;
    if (axes !== this.view.axes().length && !this.bar.contains(document.activeElement)) this.drawControls();
    this.refresh();
  }
};
