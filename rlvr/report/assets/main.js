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
  head.replaceChildren(
    make("h1", {}, report.title),
    make("p", { class: "summary" }, report.summary),
    Report.notes(report.notes) || "",
    make("div", { class: "figures" }, ...report.figures.map(figure)),
    facts,
    recipe,
  );
  Report.curves(document.getElementById("curves"), report);
  Report.reliabilities(document.getElementById("reliability"), report.calibration);
  Report.timeline = new Report.Timeline(document.getElementById("timeline"), report.timeline);
  Report.browser = new Report.Browser(document.getElementById("completions"), report);
}
