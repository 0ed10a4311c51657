"use strict";
/* The list of runs: the state of each, and what to look at. */

{
  const { make } = Report;
  const report = Report.data("report");
  const chosen = new Set();
  let runs = report.runs;
  let query = "";
  let signature = "";

  const status = make("p", { class: "notes trouble", role: "alert", hidden: true });
  const summary = make("p", { class: "summary" });
  document.getElementById("head").replaceChildren(make("h1", {}, `Runs in ${report.title}`), summary, status);

  const compare = make("a", { class: "button", role: "button" });
  const search = make("input", { type: "search", placeholder: "part of a name", input: () => {
    query = search.value.trim().toLowerCase();
    draw();
  } });
  const body = make("tbody");
  const empty = make("p", { class: "empty" });
  document.getElementById("runs").append(
    make("div", { class: "controls" }, make("label", { class: "field grow" }, make("span", {}, "Find"), search), compare),
    make("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": "Runs" }, make("table", { class: "wide runs" },
      make("thead", {}, make("tr", {}, ...["", "Run", "State", "Steps", "Left", "Last values"].map((text) => make("th", { scope: "col" }, text)))), body)),
    empty,
  );

  const progress = (run) => {
    const share = run.total ? Math.min(1, run.step / run.total) : 0;
    const bar = make("i", { class: "progress", "aria-hidden": "true" }, make("i", {}));
    bar.firstChild.style.width = `${100 * share}%`;
    return [run.total ? `${run.step} of ${run.total}` : String(run.step), run.total ? bar : ""];
  };

  const format = (name) => (/accuracy|correct|auc/.test(name) ? "fraction" : "number");
  const row = (run) => {
    const box = make("input", { type: "checkbox", "aria-label": `Compare ${run.name}`, change: () => {
      if (box.checked) chosen.add(run.name);
      else chosen.delete(run.name);
      link();
    } });
    box.checked = chosen.has(run.name);
    const address = `run?${new URLSearchParams({ name: run.name })}`;
    return make("tr", { "data-run": run.name },
      make("td", {}, box),
      make("th", { scope: "row" }, make("a", { href: address }, run.name)),
      make("td", { class: "state" }), make("td", { class: "steps-cell" }), make("td", { class: "left" }), make("td", { class: "values" }));
  };

  const fill = (element, run) => {
    const cell = (name) => element.querySelector(`.${name}`);
    cell("state").replaceChildren(make("span", { class: `chip ${run.state}`, title: run.reason }, run.state), run.reason ? make("small", {}, ` ${run.reason.slice(0, 80)}`) : "");
    cell("steps-cell").replaceChildren(...progress(run));
    cell("left").textContent = run.eta ? Report.duration(run.eta) : "";
    cell("values").replaceChildren(...run.figures.map(([name, value]) => make("span", { class: "value" }, `${name.replace(/^eval\//, "")} `, make("b", {}, Report.number(value, format(name))))));
  };

  const link = () => {
    const names = runs.map((run) => run.name).filter((name) => chosen.has(name));
    const asked = names.length ? names : runs.map((run) => run.name);
    compare.textContent = names.length ? `Compare ${names.length} chosen` : `Compare all ${runs.length}`;
    compare.hidden = runs.length < 2 && !names.length;
    compare.href = `compare?${names.length ? asked.map((run) => new URLSearchParams({ run })).join("&") : ""}`;
  };

  /* Rows are made anew only when other runs are listed, so that the focus stays where it is. */
  const draw = () => {
    const listed = runs.filter((run) => run.name.toLowerCase().includes(query));
    const now = JSON.stringify(listed.map((run) => run.name));
    if (now !== signature) body.replaceChildren(...listed.map(row));
    signature = now;
    listed.forEach((run, i) => fill(body.children[i], run));
    empty.hidden = listed.length > 0;
    empty.textContent = runs.length ? "No run has such a name." : "There is no run here yet.";
    const counts = {};
    for (const run of runs) counts[run.state] = (counts[run.state] || 0) + 1;
    summary.textContent = Object.entries(counts).map(([state, count]) => `${count} ${state}`).join(", ") || "No run yet";
    for (const name of [...chosen]) if (!runs.some((run) => run.name === name)) chosen.delete(name);
    link();
  };

  draw();
  Report.every(report.live.every, status, async () => {
    runs = await Report.request("runs");
    draw();
  });
}
