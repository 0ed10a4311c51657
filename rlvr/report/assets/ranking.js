"use strict";
/* The page of a ranking: accuracy by the number of responses that one is chosen from, and the
   reliability of the reward model. */

Report.overN = (curves) => {
  const { make, svg, number } = Report;
  const [W, H, left, bottom, top, right] = [480, 320, 48, 40, 8, 14];
  const ns = curves[0].points.map((point) => point.n);
  const most = ns[ns.length - 1];
  const high = Math.max(0.05, ...curves.flatMap((curve) => curve.points.map((point) => point.high ?? point.value)));
  const x = (n) => left + ((W - left - right) * Math.log2(n)) / (Math.log2(most) || 1);
  const y = (value) => H - bottom - ((H - top - bottom) * value) / high;
  const drawing = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "Accuracy by N" });
  for (const tick of Report.ticks(0, high, 5, false)) {
    drawing.append(
      svg("line", { class: "grid", x1: left, x2: W - right, y1: y(tick), y2: y(tick) }),
      svg("text", { class: "tick", x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, Report.tickLabel(tick, "fraction")),
    );
  }
  for (const n of ns) drawing.append(svg("text", { class: "tick", x: x(n), y: H - bottom + 16, "text-anchor": "middle" }, String(n)));
  drawing.append(svg("text", { class: "tick", x: (left + W - right) / 2, y: H - 6, "text-anchor": "middle" }, "N, responses that one is chosen from"));
  curves.forEach((curve, index) => {
    const series = `c${index + 1}`;
    const place = (point) => `${x(point.n).toFixed(1)},${y(point.value).toFixed(1)}`;
    drawing.append(svg("path", { class: `line ${series}`, "data-method": curve.method, d: `M${curve.points.map(place).join("L")}` }));
    for (const point of curve.points) {
      const text = `${curve.label}, N = ${point.n}: ${number(point.value, "fraction")}`;
      if (point.low !== null) drawing.append(svg("line", { class: "whisker", x1: x(point.n), x2: x(point.n), y1: y(point.low), y2: y(point.high) }));
      drawing.append(svg("circle", { class: `dot ${series}`, cx: x(point.n), cy: y(point.value), r: 3.5 }, svg("title", {}, text)));
    }
  });
  const keys = curves.map((curve, index) => {
    const last = curve.points[curve.points.length - 1];
    return make("span", { class: "key" }, make("i", { class: `swatch c${index + 1}` }), make("span", { class: "name" }, curve.label), make("b", {}, number(last.value, "fraction")));
  });
  return make("figure", { class: "chart", "data-chart": "curves" }, make("h3", {}, "Accuracy by N"), make("div", { class: "readout" }, ...keys), drawing, make("p", { class: "help" }, "Expected over the draw of N responses; whiskers: 95 % of a bootstrap over problems."));
};

{
  const ranking = Report.data("ranking");
  const facts = Report.make("dl", { class: "run" });
  for (const [name, text] of ranking.facts) {
    facts.append(Report.make("div", {}, Report.make("dt", {}, name), Report.make("dd", {}, text)));
  }
  document.getElementById("head").replaceChildren(Report.make("h1", {}, ranking.title), facts);
  const grid = Report.make("div", { class: "grid-charts" }, Report.overN(ranking.curves), Report.reliability(ranking.reliability));
  document.getElementById("charts").append(grid);
}
