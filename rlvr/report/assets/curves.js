"use strict";
/* The charts, in sections; which there are was decided when the page was written. */

Report.curves = (host, report) => {
  const { make } = Report;
  const charts = [];
  let pending = null;
  /* A pointer moves more often than the screen is drawn; a key must count at once, for the next
     one goes on from there. */
  const hover = (step, atOnce) => {
    if (atOnce) {
      for (const chart of charts) chart.show(step);
      if (pending !== null) pending.step = step;
      return;
    }
    if (pending === null) {
      requestAnimationFrame(() => {
        for (const chart of charts) chart.show(pending.step);
        pending = null;
      });
    }
    pending = { step };
  };
  const redraw = () => charts.forEach((chart) => chart.element.clientWidth && chart.draw());

  const smooth = make("input", {
    type: "checkbox",
    change: () => {
      for (const chart of charts) chart.smoothed = smooth.checked;
      redraw();
    },
  });
  smooth.checked = report.steps.length > 150;
  const title = make("h2", {}, "Curves");
  const toggle = make("label", { class: "toggle" }, smooth, " Smooth");
  host.append(make("div", { class: "bar-top" }, title, toggle));
  if (!report.charts.length) {
    host.append(make("p", { class: "empty" }, "No metric has been logged yet."));
    return;
  }

  let grid = null;
  let last = "";
  for (const plan of report.charts) {
    const place = `${plan.section}/${plan.group}`;
    if (place !== last) {
      const heading = plan.group ? `${plan.section}: ${plan.group}` : plan.section;
      grid = make("div", { class: "grid-charts" });
      host.append(make("h3", { class: "section" }, heading), grid);
      last = place;
    }
    const chart = new Report.Chart(plan, report, hover);
    chart.smoothed = smooth.checked;
    charts.push(chart);
    grid.append(chart.element);
  }
  redraw();
  let width = host.clientWidth;
  new ResizeObserver(() => {
    if (host.clientWidth === width) return;
    width = host.clientWidth;
    requestAnimationFrame(redraw);
  }).observe(host);
};
