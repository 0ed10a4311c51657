"use strict";
/* Fill the page. */

{
  const { make } = Report;
  const page = Report.data("page");

  document.getElementById("head").replaceChildren(
    make("h1", {}, page.title),
    make("p", { class: "summary" }, page.summary),
    Report.notes(page.notes) || "",
  );

  const columns = [
    ["run", "evaluation", (v) => v], ["benchmark", "benchmark", (v) => v], ["problems", "problems", String],
    ["metric", "metric", (v) => v], ["accuracy", "accuracy, %", (v) => v], ["interval", "95 % interval", (v) => v],
    ["greedy", "greedy, %", (v) => v], ["pass", "pass@k, %", (v) => v], ["maj", "maj@k, %", (v) => v],
    ["no_answer", "no answer", Report.percent], ["truncated", "truncated", Report.percent],
    ["tokens", "tokens", (v) => v.toFixed(0)], ["bits", "bits per answer byte", (v) => v.toFixed(3)],
    ["disagreements", "graders disagree", String],
  ].filter(([key]) => page.table.some((row) => row[key] !== null && row[key] !== undefined))
    .filter(([key]) => key !== "run" || page.runs.length > 1);
  const cls = (key) => (key === "run" || key === "benchmark" ? "name" : null);
  const cell = (row, key, show) => (row[key] === null || row[key] === undefined ? "\u2013" : show(row[key]));
  document.getElementById("scores").replaceChildren(
    make("h2", { id: "scores-title" }, "Scores"),
    make("div", { class: "wide", tabindex: "0" }, make("table", { class: "scores" },
      make("thead", {}, make("tr", {}, ...columns.map(([key, text]) => make("th", { class: cls(key) }, text)))),
      make("tbody", {}, ...page.table.map((row) => make("tr", {}, ...columns.map(([key, , show]) => make("td", { class: cls(key) }, cell(row, key, show)))))))),
    make("p", { class: "help" }, "Percent with the standard error over problems; intervals by bootstrap over problems (w: Wilson\u2019s, where all problems are alike)."),
    ...page.manifests.map((facts, run) => make("details", { class: "manifest" },
      make("summary", {}, `What was evaluated: ${page.runs[run]}`),
      make("dl", {}, ...facts.flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)])))),
  );

  if (page.tests.length) {
    const heads = Object.keys(page.tests[0]);
    document.getElementById("scores").append(
      make("h2", { id: "tests-title" }, `Against ${page.runs[0]}`),
      make("div", { class: "wide", tabindex: "0" }, make("table", { class: "tests" },
        make("thead", {}, make("tr", {}, ...heads.map((text, i) => make("th", { class: i < 2 ? "name" : null }, text)))),
        make("tbody", {}, ...page.tests.map((row) => make("tr", {}, ...heads.map((key, i) => make("td", { class: i < 2 ? "name" : null }, row[key]))))))),
      make("p", { class: "help" }, "Greedy accuracy: McNemar\u2019s exact test; averages of samples: paired bootstrap over problems. p (Holm) accounts for all tests together."),
      Report.notes(page.tests_notes) || "",
    );
  }

  const charts = Object.values(page.benchmarks).flatMap((b) => [
    Report.passCurves(b, page.runs),
    Report.bars(`${b.title}: accuracy by level`, b.level, page.runs),
    Report.bars(`${b.title}: accuracy by subject`, b.subject, page.runs),
  ]).filter(Boolean);
  if (charts.length) {
    document.getElementById("plots").replaceChildren(make("h2", {}, "Plots"), make("div", { class: "charts" }, ...charts));
  }

  const samples = new Report.Samples(document.getElementById("samples"), page);
  document.getElementById("problems").replaceChildren(
    make("h2", { id: "problems-title" }, "Problems"),
    make("p", { class: "help" }, "One cell per problem, greener the more of its samples are right; a click opens them."),
    ...Object.entries(page.problems).map(([name, heat]) => Report.heat(page.benchmarks[name].title, heat, page.runs, (run, id) => samples.jump(run, name, id))),
  );
  Report.samples = samples;
}
