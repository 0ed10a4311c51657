"use strict";
/* Plots as SVG: pass@k and maj@k by k, accuracy by level or subject with intervals, and the heat map
   of problems by evaluation. */

Report.series = (run) => `c${(run % 8) + 1}`;
Report.percent = (value) => `${(100 * value).toFixed(1)} %`;

/* Accuracy over k on a logarithmic axis: pass@k solid with its interval, maj@k dashed. */
Report.passCurves = (benchmark, runs) => {
  const { svg, make } = Report;
  const curves = [];
  benchmark.pass.forEach((points, run) => points && curves.push({ points, run, kind: "pass" }));
  benchmark.maj.forEach((points, run) => points && curves.push({ points, run, kind: "maj" }));
  if (!curves.length) return null;
  const [W, H, left, bottom, top, right] = [420, 230, 44, 28, 8, 26];
  const most = Math.max(...curves.flatMap((c) => c.points.map((p) => p[0])));
  const x = (k) => left + ((W - left - right) * Math.log2(k)) / (Math.log2(most) || 1);
  const high = Math.max(0.05, ...curves.flatMap((c) => c.points.map((p) => (c.kind === "pass" ? p[3] : p[1]))));
  const y = (value) => H - bottom - ((H - top - bottom) * value) / high;
  const drawing = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${benchmark.title}: accuracy by k` });
  for (const tick of Report.ticks(0, high, 4, false)) {
    drawing.append(
      svg("line", { class: "grid", x1: left, x2: W - right, y1: y(tick), y2: y(tick) }),
      svg("text", { class: "tick", x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, Report.tickLabel(tick, "fraction")),
    );
  }
  for (let k = 1; k <= most; k *= 2) {
    drawing.append(svg("text", { class: "tick", x: x(k), y: H - 10, "text-anchor": "middle" }, `k = ${k}`));
  }
  for (const { points, run, kind } of curves) {
    const path = (index) => points.map((p) => `${x(p[0]).toFixed(1)},${y(p[index]).toFixed(1)}`);
    if (kind === "pass" && runs.length <= 3) {
      drawing.append(svg("path", { class: `band ${Report.series(run)}`, d: `M${path(3).join("L")}L${path(2).reverse().join("L")}Z` }));
    }
    const dashed = kind === "maj" ? " dashed" : "";
    drawing.append(svg("path", { class: `line ${Report.series(run)}${dashed}`, "data-kind": kind, "data-run": run, d: `M${path(1).join("L")}` }));
  }
  return make("figure", { class: "chart", "data-chart": "pass" }, make("h3", {}, `${benchmark.title}: pass@k, and majority of k`), Report.legend(runs, curves.some((c) => c.kind === "maj")), drawing);
};

Report.legend = (runs, majority) => {
  const { make } = Report;
  const key = (cls, text) => make("span", {}, make("span", { class: `swatch ${cls}` }), text);
  const items = runs.map((name, run) => key(Report.series(run), name));
  if (majority) items.push(key("c8 dashed", "dashed: majority"));
  return make("p", { class: "legend" }, ...items);
};

/* Horizontal bars with 95 % intervals, one group per level or subject, one bar per run. */
Report.bars = (title, groups, runs) => {
  const { svg, make } = Report;
  if (!groups.length) return null;
  const [W, left, right, row] = [420, 150, 40, 13];
  const height = groups.length * (runs.length * row + 8) + 24;
  const values = groups.flatMap((g) => g.values.filter(Boolean).map((v) => v.value.high));
  const high = Math.max(0.05, ...values);
  const x = (value) => left + ((W - left - right) * value) / high;
  const drawing = svg("svg", { viewBox: `0 0 ${W} ${height}`, role: "img", "aria-label": title });
  for (const tick of Report.ticks(0, high, 3, false)) {
    drawing.append(
      svg("line", { class: "grid", x1: x(tick), x2: x(tick), y1: 0, y2: height - 20 }),
      svg("text", { class: "tick", x: x(tick), y: height - 6, "text-anchor": "middle" }, Report.tickLabel(tick, "fraction")),
    );
  }
  groups.forEach((group, index) => {
    const top = index * (runs.length * row + 8) + 4;
    const count = (group.values.find(Boolean) || { problems: 0 }).problems;
    const name = group.label.length > 20 ? `${group.label.slice(0, 19)}\u2026` : group.label;
    drawing.append(svg("text", { class: "tick", x: left - 8, y: top + (runs.length * row) / 2 + 3, "text-anchor": "end" }, `${name} (${count})`, svg("title", {}, group.label)));
    group.values.forEach((item, run) => {
      if (!item) return;
      const at = top + run * row;
      const tip = svg("title", {}, `${runs[run]}, ${group.label}: ${Report.percent(item.value.value)}`);
      drawing.append(
        svg("rect", { class: `bar ${Report.series(run)}`, x: left, y: at, width: Math.max(1, x(item.value.value) - left), height: row - 3 }, tip),
        svg("line", { class: "whisker", x1: x(item.value.low), x2: x(item.value.high), y1: at + row / 2 - 1.5, y2: at + row / 2 - 1.5 }),
      );
    });
  });
  return make("figure", { class: "chart", "data-chart": "bars" }, make("h3", {}, title), Report.legend(runs, false), drawing);
};

/* One cell per problem, one row per evaluation; a click opens the problem's samples. */
Report.heat = (title, heat, runs, open) => {
  const { make } = Report;
  const rows = runs.flatMap((name, run) => [
    make("span", {}, name),
    make("div", { class: "cells" }, ...heat.rows[run].map((value, index) => {
      const text = `${heat.ids[index]}: ${value === null ? "not asked" : Report.percent(value)}`;
      const cell = make("button", { type: "button", class: value === null ? "none" : "", title: text, "aria-label": text, click: () => open(run, heat.ids[index]) });
      cell.style.setProperty("--share", value === null ? 0 : value);
      return cell;
    })),
  ]);
  return make("div", { class: "heatmap" }, make("h3", {}, title), make("div", { class: "heat" }, ...rows));
};
