"use strict";
/* The browser of samples: choose an evaluation and a benchmark, filter, search, read. Everything a
   model or a data set said goes in as text. */

Report.Samples = class {
  constructor(root, page) {
    this.root = root;
    this.page = page;
    this.file = page.files[0];
    this.filter = "all";
    this.query = "";
    this.current = null;
    this.draw();
  }

  get problems() { return this.file ? Report.data(this.file.id) : []; }

  /* What a filter keeps of a problem, by any of its samples. */
  keeps(problem) {
    const tests = {
      all: () => true,
      right: (s) => s.correct,
      wrong: (s) => !s.correct,
      truncated: (s) => s.truncated,
      disagree: (s) => new Set(Object.values(s.verdicts).map((v) => v.correct)).size > 1,
    };
    if (!problem.samples.some(tests[this.filter])) return false;
    const query = this.query.toLowerCase();
    return !query || [problem.question, problem.answer, ...problem.samples.map((s) => s.response)].some((t) => t.toLowerCase().includes(query));
  }

  draw() {
    const { make } = Report;
    const runs = this.page.runs.map((name, index) => [String(index), name]);
    const benchmarks = this.page.files.filter((f) => f.run === (this.file || {}).run).map((f) => [f.id, f.benchmark]);
    const filters = [["all", "All"], ["right", "Right"], ["wrong", "Wrong"], ["truncated", "Truncated"], ["disagree", "Graders disagree"]];
    const choose = (file) => { this.file = file; this.current = null; this.draw(); };
    const sameBenchmark = (run) => this.page.files.find((f) => f.run === run && f.benchmark === this.file.benchmark) || this.page.files.find((f) => f.run === run);
    const search = make("input", { type: "search", value: this.query, "aria-label": "Search", input: () => { this.query = search.value; this.fill(); } });
    this.list = make("div", { class: "list", role: "list", tabindex: "0" });
    this.detail = make("div", { class: "detail", tabindex: "0" });
    this.count = make("p", { class: "count" });
    this.root.replaceChildren(
      make("h2", { id: "samples-title" }, "Samples"),
      make("div", { class: "controls" },
        runs.length > 1 ? Report.select("Evaluation", runs, String(this.file.run), (v) => choose(sameBenchmark(Number(v)))) : null,
        Report.select("Benchmark", benchmarks, this.file ? this.file.id : "", (id) => choose(this.page.files.find((f) => f.id === id))),
        make("div", { class: "filters" }, ...filters.map(([key, text]) => make("button", { type: "button", "data-filter": key, "aria-pressed": String(this.filter === key), click: () => { this.filter = key; this.draw(); } }, text))),
        make("label", { class: "field grow" }, make("span", {}, "Search"), search)),
      this.count,
      make("div", { class: "panes" }, this.list, this.detail),
    );
    this.fill();
  }

  fill() {
    const { make } = Report;
    const all = this.problems;
    const kept = all.filter((problem) => this.keeps(problem));
    this.count.textContent = `${kept.length} of ${all.length} problems`;
    this.list.replaceChildren(...kept.map((problem) => {
      const right = problem.samples.filter((s) => s.correct).length;
      return make("button", { type: "button", class: "item", "data-problem": problem.problem, "aria-current": problem.problem === this.current ? "true" : null, click: () => this.open(problem.problem) },
        make("span", { class: `score ${right ? "good" : "bad"}` }, `${right}/${problem.samples.length}`),
        make("span", { class: "line" }, problem.question));
    }));
    const shown = kept.find((problem) => problem.problem === this.current) || kept[0];
    if (shown) this.show(shown);
    else this.detail.replaceChildren(make("p", { class: "empty" }, "No problem matches."));
  }

  open(id) {
    this.current = id;
    const problem = this.problems.find((item) => item.problem === id);
    for (const item of this.list.children) {
      if (item.dataset.problem === id) item.setAttribute("aria-current", "true");
      else item.removeAttribute("aria-current");
    }
    if (problem) this.show(problem);
  }

  /* Open a problem of another evaluation, as the heat map asks; what is not on the page is said. */
  jump(run, benchmark, id) {
    this.file = this.page.files.find((f) => f.run === run && f.benchmark === benchmark) || this.file;
    this.filter = "all";
    this.query = "";
    this.current = id;
    this.draw();
    if (!this.problems.some((item) => item.problem === id)) {
      this.detail.replaceChildren(Report.make("p", { class: "empty" }, `The samples of ${id} are not on this page; see samples.jsonl.`));
    }
    this.root.scrollIntoView();
  }

  show(problem) {
    const { make } = Report;
    const facts = [["id", problem.problem], ["level", problem.level], ["subject", problem.subject]].filter(([, v]) => v).map(([k, v]) => `${k} ${v}`).join(", ");
    this.detail.replaceChildren(
      make("p", { class: "count" }, facts),
      make("h4", {}, "Problem"), make("div", { class: "text question" }, problem.question),
      make("h4", {}, "Reference"), make("div", { class: "text gold" }, problem.answer),
      make("details", {}, make("summary", {}, "Prompt as the model got it"), make("div", { class: "text prompt" }, problem.prompt)),
      ...problem.samples.map((sample) => this.sample(sample)),
    );
    this.detail.scrollTop = 0;
  }

  sample(sample) {
    const { make } = Report;
    const name = sample.greedy ? "Greedy" : `Sample ${sample.sample + 1}`;
    const verdict = make("span", { class: sample.correct ? "good" : "bad" }, sample.correct ? "right" : "wrong");
    const cut = sample.truncated ? make("span", { class: "cut" }, ", truncated") : null;
    const rows = Object.entries(sample.verdicts).map(([grader, v]) => make("tr", {},
      make("th", {}, grader === sample.grader ? `${grader} (counts)` : grader),
      make("td", { class: v.correct ? "good" : "bad" }, v.correct ? "right" : "wrong"),
      make("td", { class: "extracted" }, v.extracted === null ? "\u2013" : v.extracted),
      make("td", {}, v.reason)));
    return make("article", { class: "sample", "data-sample": sample.sample },
      make("h4", {}, `${name}: `, verdict, cut, `, ${sample.tokens} tokens`),
      make("table", { class: "verdicts" },
        make("thead", {}, make("tr", {}, ...["grader", "verdict", "extracted", "reason"].map((t) => make("th", {}, t)))),
        make("tbody", {}, ...rows)),
      this.response(sample));
  }

  /* The response with the last place of the extracted answer marked. */
  response(sample) {
    const { make } = Report;
    const found = sample.verdicts[sample.grader].extracted;
    const at = found ? sample.response.lastIndexOf(found) : -1;
    const parts = at < 0 ? [sample.response] : [sample.response.slice(0, at), make("mark", {}, found), sample.response.slice(at + found.length)];
    return make("div", { class: "text response", tabindex: "0" }, ...parts);
  }
};
