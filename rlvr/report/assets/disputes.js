"use strict";
/* What a second judge said of the verdicts, and the completions on which the two disagree. */

Report.disputes = (host, panel) => {
  if (!panel) return;
  const { make } = Report;
  const said = (judge) => [
    make("b", {}, judge.correct ? "right" : "wrong"),
    `: ${[judge.reason, judge.path && `by ${judge.path}`, judge.certainty && `rests on ${judge.certainty}`].filter(Boolean).join(", ")}`,
  ];
  const line = (row) => make(
    "tr",
    {},
    make("td", { class: "number" }, `${row.step}`),
    make("td", {}, row.problem_id),
    make("td", {}, make("code", {}, row.answer)),
    make("td", {}, make("code", {}, row.verdict.extracted || row.second.extracted)),
    make("td", {}, ...said(row.verdict)),
    make("td", {}, ...said(row.second)),
    make("td", {}, make("details", {}, make("summary", {}, "response"), make("pre", { tabindex: "0" }, row.response))),
  );
  const heads = ["step", "problem", "reference", "answer", "verifier", "second judge", ""];
  const table = make(
    "table",
    { class: "disputes" },
    make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)))),
    make("tbody", {}, ...panel.rows.map(line)),
  );
  const count = panel.total > panel.rows.length ? `The newest ${panel.rows.length} of ${panel.total} recorded.` : "";
  host.append(
    make("h3", { class: "section" }, "Disputed verdicts"),
    ...panel.lines.map((text) => make("p", {}, text)),
    make("p", { class: "help" }, `A contradiction is evidence that a verdict is wrong, and no proof: the second judge errs too. ${count}`),
    panel.rows.length ? make("div", { class: "scrolls", tabindex: "0", role: "region", "aria-label": "Disputed completions" }, table) : "",
  );
};
