"use strict";
/* Fill the page. */

{
  const { make } = Report;
  const report = Report.data("report");
  const head = document.getElementById("head");

  const figure = (item) => {
      const same = item.first_step === item.last_step;
    const show = (value) => Report.number(value, item.format);
    const when = (step) => (step === 0 ? "before training" : `step ${step}`);
    return make(
      "div",
      { class: "figure", "data-metric": item.metric },
      make("span", { class: "label" }, item.label),
      make("span", { class: "change" }, ...(same ? [] : [make("span", { class: "from" }, show(item.first)), make("span", { class: "arrow", "aria-label": "to" }, "\u2192")]), make("b", {}, show(item.last))),
      make("span", { class: "when" }, same ? when(item.last_step) : `${when(item.first_step)} to ${when(item.last_step)}`),
    );
  };

  const facts = make("dl", { class: "run" });
  for (const [name, text] of report.facts) {
    facts.append(make("div", {}, make("dt", {}, name), make("dd", {}, text)));
  }
  const recipe = make(
    "details",
    { class: "recipe" },
    make("summary", {}, "Recipe"),
    make("pre", { tabindex: "0" }, report.recipe),
  );
  const summary = make("p", { class: "summary" }, report.summary);
  const figures = make("div", { class: "figures" });
  /* The newest values, which in a page of a dashboard are not those that it began with. */
  const drawFigures = () => figures.replaceChildren(...report.figures.map((item) => {
    const { points } = Report.points(report, item.metric, "steps");
    const end = points[points.length - 1];
    return figure(end ? { ...item, last: end[1], last_step: end[4] } : item);
  }));
  drawFigures();
  head.replaceChildren(
    make("h1", {}, report.title),
    summary,
    Report.notes(report.notes) || "",
    figures,
    facts,
    recipe,
  );
  Report.curves = new Report.Curves(document.getElementById("curves"), report);
  Report.alarms(document.getElementById("alarms"), report.alarms);
  Report.reliabilities(document.getElementById("reliability"), report.calibration);
  Report.disputes(document.getElementById("disputes"), report.disputes);
  Report.books(document.getElementById("books"), report.books);
  Report.timeline = new Report.Timeline(document.getElementById("timeline"), report.timeline);
  Report.problems = new Report.Problems(document.getElementById("problem"), Report.data("problems"), report, Report.curves);
  Report.browser = new Report.Browser(document.getElementById("completions"), report);
  Report.live(report, Report.curves, Report.browser, ([state], grown) => {
    if (state.state !== "finished") summary.textContent = Report.stateText(state);
    if (grown) drawFigures();
  });
}
