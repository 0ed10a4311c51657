"use strict";
/* Where prompts and tokens went: a bar by fate, and a table that says what each fate means. */

Report.books = (host, panel) => {
  if (!panel) return;
  const { make } = Report;
  const colours = { trained: "c3", skipped: "c6", masked: "c2", filtered: "c8", surplus: "c1", stale: "c4", waiting: "c5" };
  const share = (count, total) => `${(100 * count / Math.max(1, total)).toFixed(1)} %`;
  const bar = (flow) => {
    const told = flow.fates.map(({ fate, count }) => `${fate} ${share(count, flow.total)}`).join(", ");
    const part = ({ fate, count }) => {
      const piece = make("span", { class: `part ${colours[fate]}`, title: `${fate}: ${count.toLocaleString("en")}` });
      piece.style.flexGrow = count;
      return piece;
    };
    return make("div", { class: "flow", role: "img", "aria-label": `${flow.name}: ${told}` }, ...flow.fates.map(part));
  };
  const line = (flow) => ({ fate, count, meaning }) => make(
    "tr",
    {},
    make("td", { class: colours[fate] }, make("span", { class: "key" }, make("span", { class: "swatch" }), fate)),
    make("td", { class: "number" }, count.toLocaleString("en")),
    make("td", { class: "number" }, share(count, flow.total)),
    make("td", {}, meaning),
  );
  const table = (flow) => make(
    "table",
    { class: "disputes" },
    make("thead", {}, make("tr", {}, ...[flow.name, "count", "share", "what became of them"].map((text) => make("th", { scope: "col" }, text)))),
    make("tbody", {}, ...flow.fates.map(line(flow))),
  );
  const steps = panel.steps === 1 ? "1 step" : `${panel.steps.toLocaleString("en")} steps`;
  const counted = ({ name, total }) => `${total.toLocaleString("en")} ${name}`;
  host.append(
    make("h3", { class: "section" }, "Where prompts and tokens went"),
    make("p", { class: "help" }, `${panel.flows.map(counted).join(", ")} in ${steps} (RUN/ledger.jsonl); rlvr audit RUN checks every one.`),
    ...panel.flows.flatMap((flow) => [
      bar(flow),
      make("div", { class: "scrolls", tabindex: "0", role: "region", "aria-label": flow.name }, table(flow)),
    ]),
  );
};
