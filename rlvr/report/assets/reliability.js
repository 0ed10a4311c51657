"use strict";
/* Reliability: how often responses were right, by the probability that a reward model gave them. On
   the diagonal it means what it says. */

Report.reliability = (item) => {
  const { make, svg, number } = Report;
  const [W, H, left, bottom, top, right] = [360, 320, 48, 40, 8, 14];
  const x = (value) => left + (W - left - right) * value;
  const y = (value) => H - bottom - (H - top - bottom) * value;
  const total = item.bins.reduce((sum, bin) => sum + bin.count, 0);
  const spoken = item.bins.map((bin) => `${number(bin.probability)} given, ${number(bin.right)} right`);
  const drawing = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `Reliability of ${item.label}. ${spoken.join("; ")}.` });
  for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
    drawing.append(
      svg("line", { class: "grid", x1: left, x2: W - right, y1: y(tick), y2: y(tick) }),
      svg("text", { class: "tick", x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, number(tick)),
      svg("text", { class: "tick", x: x(tick), y: H - bottom + 16, "text-anchor": "middle" }, number(tick)),
    );
  }
  drawing.append(
    svg("text", { class: "tick", x: x(0.5), y: H - 6, "text-anchor": "middle" }, "probability given"),
    svg("text", { class: "tick", x: -y(0.5), y: 12, transform: "rotate(-90)", "text-anchor": "middle" }, "share right"),
    svg("line", { class: "hair diagonal", x1: x(0), y1: y(0), x2: x(1), y2: y(1) }),
    svg("path", { class: "line c1", d: `M${item.bins.map((bin) => `${x(bin.probability).toFixed(1)},${y(bin.right).toFixed(1)}`).join("L")}` }),
  );
  for (const bin of item.bins) {
    const spread = 1.96 * Math.sqrt((bin.right * (1 - bin.right)) / bin.count);
    const text = `${number(bin.low)} to ${number(bin.high)}: ${bin.count} responses, ${number(bin.probability)} given, ${number(bin.right)} right`;
    const low = Math.max(0, bin.right - spread);
    drawing.append(
      svg("line", { class: "whisker", x1: x(bin.probability), x2: x(bin.probability), y1: y(low), y2: y(Math.min(1, bin.right + spread)) }),
      svg("circle", { class: "dot c1", "data-count": bin.count, cx: x(bin.probability), cy: y(bin.right), r: 2.5 + 9 * Math.sqrt(bin.count / total) }, svg("title", {}, text)),
    );
  }
  const figures = `${total} responses. Brier ${number(item.brier)}, expected calibration error ${number(item.ece)}.`;
  const help = "A point is a bin of responses, its area their number; whiskers are 95 % of a proportion. Above the diagonal more were right than it said, below fewer.";
  return make("figure", { class: "chart", "data-chart": "reliability" }, make("h3", {}, `Reliability: ${item.label}`), make("p", { class: "readout" }, figures), drawing, make("p", { class: "help" }, help));
};

Report.reliabilities = (host, items) => {
  if (!items.length) return;
  const grid = Report.make("div", { class: "grid-charts" }, ...items.map(Report.reliability));
  host.append(Report.make("h3", { class: "section" }, "Calibration of the reward model"), grid);
};
