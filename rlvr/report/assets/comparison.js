"use strict";
/* Fill the page of several runs. */

{
  const { make } = Report;
  const report = Report.data("report");
  const row = (cells, tag = "td") => make("tr", {}, ...cells.map((cell, i) => make(i ? tag : "th", i || tag === "th" ? {} : { scope: "row" }, cell ?? "\u2013")));

  const table = (caption, head, rows) => make("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": caption },
    make("table", { class: "wide" }, make("thead", {}, row(head, "th")), make("tbody", {}, ...rows.map((cells) => row(cells)))));

  document.getElementById("head").replaceChildren(
    make("h1", {}, report.title),
    make("p", { class: "summary" }, report.summary),
    Report.notes(report.notes) || "",
  );

  const settings = Object.entries(report.differences);
  document.getElementById("differences").append(
    make("h2", {}, "Runs"),
    make("p", { class: "help" }, settings.length ? "The settings in which the recipes differ." : "The recipes do not differ, apart from where they write."),
    table("Settings of the runs", ["Run", report.live ? "State" : "Steps", ...settings.map(([key]) => key)],
      report.runs.map((run, i) => [run.name, run.steps.length ? String(run.steps[run.steps.length - 1]) : "0", ...settings.map(([, values]) => values[i])])),
  );

  Report.curves = new Report.Curves(document.getElementById("curves"), report);

  /* A run's last value of a metric. */
  const last = (run, metric) => {
    const { points } = Report.points(run, metric, "steps");
    return points.length ? points[points.length - 1][1] : null;
  };

  const finals = () => {
    const host = document.getElementById("finals");
    const metrics = report.charts.filter((plan) => plan.section === "Learning");
    if (!metrics.length) return;
    const groups = report.groups;
    const cell = (plan, group) => {
      const values = group.runs.map((i) => last(report.runs[i], plan.metric)).filter((value) => value !== null);
      if (!values.length) return null;
      const { mean, std } = Report.moments(values);
      const show = (value) => Report.number(value, plan.format);
      return values.length > 1 ? `${show(mean)} \u00b1 ${show(std)} (${values.length})` : show(mean);
    };
    host.replaceChildren(
      make("h2", {}, "Final values"),
      make("p", { class: "help" }, "The last value of each run; of repetitions the mean \u00b1 the sample standard deviation (and their number)."),
      table("Final values", ["", ...groups.map((group) => group.label)], metrics.map((plan) => [plan.title, ...groups.map((group) => cell(plan, group))])),
    );
  };
  finals();
  Report.curves.listeners.push(finals);
  Report.problems = new Report.Problems(document.getElementById("problem"), Report.data("problems"), report, Report.curves);
  Report.browser = new Report.Browser(document.getElementById("completions"), report);
  Report.live(report, Report.curves, Report.browser, (states) => states.forEach((state, i) => {
    const cells = document.querySelectorAll("#differences tbody tr")[i].children;
    cells[1].textContent = Report.stateText(state);
  }));
}
