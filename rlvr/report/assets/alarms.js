"use strict";
/* The alarms of the run, with their evidence. */

Report.alarms = (host, alarms) => {
  if (!alarms.length) return;
  const { make } = Report;
  const line = (row) => make(
    "tr",
    {},
    make("td", { class: "short" }, row.alarm),
    make("td", { class: "number short" }, `${row.begin}`),
    make("td", { class: "number short" }, row.end === null ? "holds" : `${row.end}`),
    make("td", {}, row.evidence),
    make("td", {}, row.advice),
    make("td", { class: "short" }, row.action),
  );
  const heads = ["alarm", "begins", "ends", "evidence when it began", "look at", "action"];
  host.append(
    make("h3", { class: "section" }, "Alarms"),
    make("p", { class: "help" }, "Steps at which an alarm held are shaded in the charts of its figures."),
    make(
      "div",
      { class: "scrolls", tabindex: "0", role: "region", "aria-label": "Alarms with their evidence" },
      make(
        "table",
        { class: "disputes" },
        make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)))),
        make("tbody", {}, ...alarms.map(line)),
      ),
    ),
  );
};
