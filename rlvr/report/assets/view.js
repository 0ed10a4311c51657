"use strict";
/* What all charts of a page share: the runs, the horizontal axis, zoom, smoothing, and the point
   under the cursor. A run is {name, steps, tokens, seconds, columns, notFinite}. */

const short = (value) => {
  for (const [size, unit] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= size) return `${Report.tickLabel(Number((value / size).toPrecision(4)))}${unit}`;
  }
  return Report.tickLabel(Number(value.toPrecision(4)));
};

const TIMES = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

/* How values of an axis are written; `span` is the width of what is shown. */
Report.AXES = {
  steps: { label: "steps", show: (value) => `step ${value}`, unit: () => 1, tick: (value) => Report.tickLabel(value) },
  tokens: { label: "tokens", show: (value) => `${short(value)} tokens`, unit: () => 1, tick: short },
  seconds: {
    label: "time",
    show: (value) => {
      const [size, name] = TIMES.find(([seconds]) => value >= seconds) || [1, "s"];
      return `${Report.tickLabel(Number((value / size).toPrecision(3)))} ${name}`;
    },
    unit: (span) => (TIMES.find(([seconds]) => span >= 3 * seconds) || [1])[0],
    tick: (value, unit) => `${Report.tickLabel(Number((value / unit).toPrecision(6)))} ${TIMES.find(([size]) => size === unit)[1]}`,
  },
};

Report.View = class {
  constructor(report) {
    this.report = report;
    this.runs = report.runs || [report];
    this.groups = report.groups || null;
    this.axis = "steps";
    this.weight = Math.max(0, ...this.runs.map((run) => run.steps.length)) > 150 ? 0.8 : 0;
    this.log = false;
    this.zoom = null;
    this.at = null;
    this.hidden = new Set();
    this.grouping = this.groups && this.groups.some((group) => group.runs.length > 1) ? "range" : "single";
    this.stopsOf = {};
  }

  /* New values came in. */
  changed() {
    this.stopsOf = {};
  }

  shown(i) {
    return !this.hidden.has(i);
  }

  /* The axes along which any run has moved. */
  axes() {
    const moved = (name) => this.runs.some((run) => (run[name] || []).some((value) => value > 0));
    return Object.keys(Report.AXES).filter((name) => name === "steps" || moved(name));
  }

  whole() {
    let low = Infinity;
    let high = -Infinity;
    this.runs.forEach((run, i) => {
      const xs = run[this.axis];
      if (!this.shown(i) || !xs.length) return;
      low = Math.min(low, xs[0]);
      high = Math.max(high, xs[xs.length - 1]);
    });
    if (low > high) return [0, 1];
    return [low, Math.max(high, low + 1)];
  }

  domain() {
    return this.zoom || this.whole();
  }

  setZoom(low, high) {
    const [first, last] = this.whole();
    const least = (last - first) * 1e-4;
    const from = Math.max(first, low);
    const to = Math.min(last, high);
    if (to - from < least) return;
    this.zoom = from <= first && to >= last ? null : [from, to];
    if (this.at < from || this.at > to) this.at = null;
  }

  /* Zoom in or out by a factor, around the cursor or the middle. */
  scale(factor) {
    const [low, high] = this.domain();
    const middle = this.at !== null && this.at >= low && this.at <= high ? this.at : (low + high) / 2;
    this.setZoom(middle - (middle - low) * factor, middle + (high - middle) * factor);
  }

  /* All places on the axis at which any run has logged something, in order. */
  stops() {
    if (!this.stopsOf[this.axis]) {
      const all = new Set(this.runs.flatMap((run) => Array.from(run[this.axis])));
      this.stopsOf[this.axis] = [...all].sort((a, b) => a - b);
    }
    const [low, high] = this.domain();
    return this.stopsOf[this.axis].filter((x) => x >= low && x <= high);
  }

  /* What the legend names: groups of runs, or single runs, each with a colour and a line style. */
  entries() {
    if (!this.groups) return [{ label: "", runs: [0], index: 0 }];
    const found = this.grouping === "single"
      ? this.runs.map((run, i) => ({ label: run.name, runs: [i] }))
      : this.groups.map((group) => ({ label: group.label, runs: group.runs }));
    return found.map((entry, index) => ({ ...entry, index, color: `c${(index % 8) + 1}`, style: `style${Math.floor(index / 8) % 3}` }));
  }
};

/* Points [x, value, low, high, step] of a metric in one run, and where it was not finite. `band` is
   the metric of a spread to both sides, `interval` those of the two ends. */
Report.points = (run, metric, axis, band, interval) => {
  const column = run.columns[metric] || [];
  const broken = new Set(run.notFinite[metric] || []);
  const bands = band ? run.columns[band] : null;
  const points = [];
  const breaks = [];
  column.forEach((value, i) => {
    if (value === undefined || value === null) {
      if (broken.has(run.steps[i])) breaks.push([run[axis][i], run.steps[i]]);
      return;
    }
    if (interval) {
      const [low, high] = interval.map((name) => (run.columns[name] || [])[i] ?? value);
      points.push([run[axis][i], value, low, high, run.steps[i]]);
      return;
    }
    const spread = bands && bands[i] !== null && bands[i] !== undefined ? bands[i] : 0;
    points.push([run[axis][i], value, value - spread, value + spread, run.steps[i]]);
  });
  return { points, breaks };
};

/* The same points with their values smoothed: exponential, without the bias of the start. A few
   points, as of evaluations, are left as they are. */
Report.smoothed = (points, weight) => {
  if (!weight || points.length < 8) return points;
  const values = Report.smooth(points.map((point) => point[1]), weight);
  return points.map((point, i) => [point[0], values[i], values[i], values[i], point[4]]);
};

/* Mean over runs at each step, with a band: from the lowest to the highest run ("range"), or one
   sample standard deviation to both sides ("std"). A step counts only if all runs that were going
   on then have a value there, so that the curve does not jump between different sets of runs. */
Report.mean = (lists, band) => {
  const full = lists.filter((points) => points.length);
  const spans = full.map((points) => points.map((point) => point[4])).map((steps) => [steps[0], steps[steps.length - 1]]);
  const byStep = new Map();
  for (const point of full.flat()) {
    if (!byStep.has(point[4])) byStep.set(point[4], []);
    byStep.get(point[4]).push(point);
  }
  const going = (step) => spans.filter(([first, last]) => first <= step && step <= last).length;
  const steps = [...byStep.keys()].sort((a, b) => a - b);
  const whole = steps.filter((step) => byStep.get(step).length === going(step));
  return (whole.length ? whole : steps).map((step) => {
    const found = byStep.get(step);
    const values = found.map((point) => point[1]);
    const { mean, std } = Report.moments(values);
    const x = Report.moments(found.map((point) => point[0])).mean;
    const [low, high] = band === "std" ? [mean - std, mean + std] : [Math.min(...values), Math.max(...values)];
    return [x, mean, low, high, step];
  }).sort((a, b) => a[0] - b[0]);
};

/* Mean and sample standard deviation (0 of a single value). */
Report.moments = (values) => {
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return { mean, std: values.length > 1 ? Math.sqrt(squares / (values.length - 1)) : 0 };
};

/* The curves of one metric over all runs that are shown. */
Report.overlay = (metric, view) => view.entries().flatMap((entry) => {
  const runs = entry.runs.filter((i) => view.shown(i));
  const found = runs.map((i) => Report.points(view.runs[i], metric, view.axis));
  const raws = found.map((item) => item.points);
  if (!raws.some((points) => points.length) && !found.some((item) => item.breaks.length)) return [];
  const even = raws.map((points) => Report.smoothed(points, view.weight));
  const several = entry.runs.length > 1;
  const join = (lists) => (several ? Report.mean(lists, view.grouping) : lists[0]);
  return [{
    metric,
    label: entry.label,
    color: entry.color,
    style: entry.style,
    raw: join(raws),
    points: join(even),
    breaks: found.flatMap((item) => item.breaks),
    solid: several,
    bandOf: several ? (view.grouping === "std" ? "std" : "range") : null,
  }];
});

/* The curves of one run's chart. */
Report.ownSeries = (plan, view) => plan.series.map((item) => {
  const { points, breaks } = Report.points(view.runs[0], item.metric, view.axis, item.band, item.interval);
  const banded = Boolean(item.band && view.runs[0].columns[item.band]);
  return {
    metric: item.metric,
    label: item.label,
    color: `${plan.shades ? "shade" : "c"}${item.color}`,
    style: item.dashed && plan.kind === "lines" ? "dashed" : "",
    raw: points,
    points: Report.smoothed(points, view.weight),
    breaks,
    solid: false,
    bandOf: item.interval ? "interval" : banded ? "own" : null,
  };
});
