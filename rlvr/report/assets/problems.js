"use strict";
/* One problem followed over the steps: how often it was solved, and what was written each time, in
   the runs that the legend shows. */

const LISTED = 300;

Report.Problems = class {
  /* `found` is {problems: [{id, set, text, runs: [[[step, right, total], ...], ...]}], notes}. */
  constructor(host, found, report, curves) {
    this.host = host;
    this.found = found;
    this.report = report;
    this.view = curves.view;
    this.curves = curves;
    if (!found.problems.length) return;
    this.titles = Report.distinct(found.problems.map((problem) => problem.text));
    this.chosen = null;
    this.build();
    curves.listeners.push(() => this.chosen && this.draw());
  }

  build() {
    const { make } = Report;
    const search = make("input", { type: "search", class: "problem-search", placeholder: "id or text of a problem", input: () => this.list(search.value) });
    this.options = make("select", { size: 6, class: "problem-list", "aria-label": "Problems", change: () => this.choose(Number(this.options.value)) });
    this.count = make("p", { class: "count", role: "status" });
    this.chart = make("div", { class: "problem-chart grid-charts" });
    this.grid = make("div", {});
    this.host.append(
      make("h2", {}, "One problem"),
      ...this.found.notes.map((line) => make("p", { class: "help" }, line)),
      make("div", { class: "controls" }, make("label", { class: "field grow" }, make("span", {}, "Find a problem"), search)),
      this.options, this.count, this.chart, this.grid,
    );
    this.list("");
  }

  name(i) {
    const { id, set } = this.found.problems[i];
    const text = this.titles[i].replace(/\s+/g, " ").slice(0, 160);
    return `${set ? `${set}: ` : ""}${id}${text ? ` \u2013 ${text}` : ""}`;
  }

  list(query) {
    const { test } = Report.matcher(query, false);
    const fit = this.found.problems.map((_, i) => i).filter((i) => test(`${this.name(i)}\n${this.found.problems[i].text}`));
    this.options.replaceChildren(...fit.slice(0, LISTED).map((i) => Report.make("option", { value: i }, this.name(i))));
    this.options.value = this.chosen ?? "";
    const listed = fit.length > LISTED ? `, the first ${LISTED} of them listed` : "";
    this.count.textContent = `${fit.length} of ${this.found.problems.length} problems${listed}. Choose one to follow it.`;
  }

  choose(i) {
    this.chosen = i;
    this.chart.replaceChildren();
    const problem = this.found.problems[i];
    const plan = { title: "Accuracy on this problem", help: "Right completions of this problem at each step at which it was sampled.", format: "fraction", kind: "lines", key: "problem" };
    this.figure = new Report.Chart(plan, this.view, () => this.series(problem), (what) => this.act(what));
    this.chart.append(this.figure.element);
    this.draw();
  }

  act(what) {
    if (what === "zoom") this.curves.refresh();
    else {
      this.view.at = what.at;
      this.figure.showCursor();
      this.curves.hoverBox(what);
    }
  }

  series(problem) {
    const { view } = this;
    const curve = (i) => {
      const run = view.runs[i];
      return problem.runs[i].map(([step, right, total]) => {
        const at = run.steps.indexOf(step);
        const x = view.axis === "steps" ? step : at < 0 ? null : run[view.axis][at];
        return [x, right / total, right / total, right / total, step];
      }).filter((point) => point[0] !== null);
    };
    return view.entries().flatMap((entry) => {
      const lists = entry.runs.filter((i) => view.shown(i)).map(curve).filter((points) => points.length);
      if (!lists.length) return [];
      const several = entry.runs.length > 1;
      const points = several ? Report.mean(lists, view.grouping) : lists[0];
      return [{ metric: "accuracy", label: entry.label || "this run", color: entry.color || "c1", style: entry.style || "", raw: points, points, breaks: [], solid: true, bandOf: several ? view.grouping : null }];
    });
  }

  draw() {
    this.figure.reload();
    this.figure.draw();
    const open = new Set([...this.grid.querySelectorAll("details[open]")].map((item) => item.dataset.key));
    const problem = this.found.problems[this.chosen];
    const runs = this.view.runs.map((_, i) => i).filter((i) => this.view.shown(i));
    const sampled = problem.runs.map((points) => new Set(points.map(([step]) => step)));
    const kind = problem.set ? "evaluation" : "training";
    const files = this.report.completions.filter((file) => {
      const i = file.run ?? 0;
      return file.kind === kind && runs.includes(i) && sampled[i].has(file.step);
    });
    const found = files.map((file) => Report.stepFile(file));
    const show = (items) => {
      if (this.found.problems[this.chosen] !== problem) return;
      this.grid.replaceChildren(this.table(problem, runs, this.rowsOf(problem, files, items), open));
    };
    if (found.some((item) => item instanceof Promise)) Promise.all(found).then(show, () => this.grid.replaceChildren());
    else show(found);
  }

  /* The problem's completions by step, and there by run. */
  rowsOf(problem, files, items) {
    const bySteps = new Map();
    files.forEach((file, n) => {
      const own = items[n].rows.filter((row) => row.problem_id === problem.id && (row.set || "") === problem.set);
      if (!own.length) return;
      if (!bySteps.has(file.step)) bySteps.set(file.step, new Map());
      bySteps.get(file.step).set(file.run ?? 0, own);
    });
    return bySteps;
  }

  table(problem, runs, bySteps, open) {
    const { make } = Report;
    const steps = [...bySteps.keys()].sort((a, b) => a - b);
    if (!steps.length) return make("p", { class: "empty" }, "The page contains no completions of this problem.");
    const rows = [...bySteps.values()].flatMap((byRun) => [...byRun.values()]).reduce((sum, own) => sum + own.length, 0);
    const there = runs.filter((i) => steps.some((step) => bySteps.get(step).has(i)));
    const cell = (step, i) => make("td", {}, ...(bySteps.get(step).get(i) || []).map((row, n) => this.completion(row, `${step}/${i}/${n}`, open)));
    const heads = there.map((i) => make("th", { scope: "col" }, this.view.runs[i].name || "completions"));
    return make("div", {},
      make("p", { class: "count" }, `${rows} completions of it in this page.`),
      make("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": "Completions of the problem" },
        make("table", { class: "wide follow" },
          make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Step"), ...heads)),
          make("tbody", {}, ...steps.map((step) => make("tr", {}, make("th", { scope: "row" }, String(step)), ...there.map((i) => cell(step, i))))))));
  }

  completion(row, key, open) {
    const { make } = Report;
    const [mark, word, tone] = Report.verdict(row);
    const text = Report.response(row);
    return make("details", { "data-key": key, open: open.has(key) },
      make("summary", {},
        make("span", { class: `mark ${tone}`, title: word }, mark), make("span", { class: "hidden" }, word),
        make("span", { class: "reward" }, ` ${Report.number(row.reward)} `), make("code", {}, text.slice(0, 80).replace(/\s+/g, " "))),
      make("div", { class: "text", tabindex: "0" }, text));
  }
};
