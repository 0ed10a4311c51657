"use strict";
/* The browser of completions: a step's groups on one side, the opened completion on the other. */

const FILTERS = {
  all: ["All", () => true],
  correct: ["Correct", (row) => row.correct === true],
  wrong: ["Wrong", (row) => row.correct === false],
  truncated: ["Truncated", (row) => Report.cut(row)],
};
const PAGE = 40;

/* Cut off what all prompts of a step begin and end with: worked examples, chat markers. */
Report.distinct = (prompts) => {
  if (prompts.length < 2) return prompts;
  const shared = (from) => {
    let n = 0;
    const shortest = Math.min(...prompts.map((prompt) => prompt.length));
    while (n < shortest && prompts.every((prompt) => from(prompt, n) === from(prompts[0], n))) n += 1;
    while (n > 0 && /[\p{L}\p{N}\ud800-\udfff]/u.test(from(prompts[0], n - 1))) n -= 1;
    return n;
  };
  const head = shared((text, n) => text[n]);
  const tail = shared((text, n) => text[text.length - 1 - n]);
  return prompts.map((prompt) => {
    const start = head > 30 ? head : 0;
    const end = tail > 12 ? Math.max(start, prompt.length - tail) : prompt.length;
    const text = prompt.slice(start, end).trim();
    return text ? `${start ? "\u2026 " : ""}${text}${end < prompt.length ? " \u2026" : ""}` : prompt;
  });
};

/* The completions of a step as {prompts, rows}: embedded in the page, or, in a page that a
   dashboard serves, fetched; read once. */
const fetched = new Map();
Report.stepFile = (file) => {
  if (fetched.has(file.id)) return fetched.get(file.id);
  if (!file.url) fetched.set(file.id, Report.data(file.id));
  if (fetched.has(file.id)) return fetched.get(file.id);
  const promise = Report.request(file.url).then((found) => {
    fetched.set(file.id, found);
    return found;
  });
  return promise;
};

Report.forgetSteps = () => fetched.clear();

const ALL = "all";
const ORDERS = {
  sampled: ["as sampled", null, 0],
  high: ["reward, highest first", (row) => row.reward ?? -Infinity, -1],
  low: ["reward, lowest first", (row) => row.reward ?? -Infinity, 1],
  long: ["longest first", (row) => Report.length(row), -1],
  brief: ["shortest first", (row) => Report.length(row), 1],
};

/* Whether a completion, or an episode, was cut at a limit. */
Report.cut = (row) => ["length", "turns", "tokens", "seconds", "tool_calls"].includes(row.finish_reason);

/* Tokens of a response; characters where no tokens were kept. */
Report.length = (row) => (row.tokens ? row.tokens.length : Report.response(row).length);

/* A pattern as a test of texts; {error} if it is none. */
Report.matcher = (query, isPattern) => {
  const wanted = query.trim();
  if (!wanted) return { test: () => true };
  if (!isPattern) return { test: (text) => text.toLowerCase().includes(wanted.toLowerCase()) };
  try {
    const pattern = new RegExp(wanted, "iu");
    return { test: (text) => pattern.test(text) };
  } catch (error) {
    return { error: error.message.replace(/^Invalid regular expression: /, "") };
  }
};

const groupKey = (row) => JSON.stringify([row.run, row.step, row.set, row.group ?? row.problem_id]);

/* Notes on what the page contains; many of them, as of many runs, are folded up. */
const omissions = (notes) => {
  const lines = notes.map((line) => Report.make("p", { class: "help" }, line));
  if (lines.length <= 4) return lines;
  return [lines[0], Report.make("details", { class: "help" }, Report.make("summary", {}, "What was omitted"), ...lines.slice(1))];
};

Report.Browser = class {
  constructor(host, report) {
    this.host = host;
    this.files = report.completions;
    this.runs = report.runs || null;
    this.state = { kind: "", run: ALL, step: "", filter: "all", query: "", pattern: false, sort: "sampled", set: "", term: "", ranges: {}, open: false };
    this.current = null;
    this.list = Report.make("div", { class: "list", "aria-label": "Completions", role: "group" });
    this.detail = Report.make("div", { class: "detail", role: "region", "aria-label": "Opened completion" });
    this.controls = Report.make("div", { class: "controls" });
    this.extra = Report.make("div", { class: "controls ranges", id: "ranges", role: "group", "aria-label": "Ranges", hidden: true });
    this.count = Report.make("p", { class: "count", role: "status" });
    this.empty = Report.make("p", { class: "empty" }, "The run has kept no completions yet.");
    host.append(
      Report.make("h2", { id: "completions-title" }, "Completions"),
      ...omissions(report.completionNotes),
      this.empty,
    );
    document.addEventListener("keydown", (event) => this.key(event));
    this.begin();
  }

  begin() {
    if (!this.files.length || this.rows) return;
    this.empty.remove();
    this.host.append(this.controls, this.extra, this.count, Report.make("div", { class: "panes" }, this.list, this.detail));
    this.kind(this.files.some((file) => file.kind === "training") ? "training" : "evaluation");
  }

  /* More steps have been logged; what is being read stays. */
  renewed(files) {
    this.files = files;
    if (!this.rows) this.begin();
    else if (!this.controls.contains(document.activeElement)) this.drawControls();
  }

  /* The files of the chosen kind and run. */
  get there() {
    return this.files.filter((file) => file.kind === this.state.kind && (this.state.run === ALL || (file.run ?? 0) === Number(this.state.run)));
  }

  get steps() {
    return [...new Set(this.there.map((file) => file.step))].sort((a, b) => a - b);
  }

  kind(kind) {
    this.state.kind = kind;
    this.state.set = "";
    this.step(this.steps[this.steps.length - 1]);
  }

  run(run) {
    this.state.run = run;
    const { steps } = this;
    const wanted = this.state.step === ALL || steps.includes(Number(this.state.step));
    this.step(wanted ? this.state.step : steps[steps.length - 1]);
  }

  step(step) {
    this.state.step = String(step);
    const files = this.there.filter((file) => step === ALL || file.step === Number(step));
    const found = files.map((file) => Report.stepFile(file));
    if (!found.some((item) => item instanceof Promise)) {
      this.take(files, found);
      return;
    }
    const wanted = `${this.state.kind}/${this.state.run}/${step}`;
    this.count.textContent = "Fetching the completions \u2026";
    Promise.all(found).then((items) => {
      if (wanted === `${this.state.kind}/${this.state.run}/${this.state.step}`) this.take(files, items);
    }, (error) => { this.count.textContent = `The completions could not be fetched: ${error.message}`; });
  }

  take(files, found) {
    this.prompts = [];
    this.rows = [];
    files.forEach((file, i) => {
      const before = this.prompts.length;
      this.prompts.push(...found[i].prompts);
      for (const row of found[i].rows) this.rows.push({ ...row, prompt: row.prompt + before, run: file.run, step: file.step });
    });
    this.titles = Report.distinct(this.prompts);
    const sets = [...new Set(this.rows.map((row) => row.set).filter(Boolean))];
    this.sets = sets.length > 1 ? sets : [];
    if (!this.sets.includes(this.state.set)) this.state.set = "";
    this.terms = [...new Set(this.rows.flatMap((row) => Object.keys(row.rewards || {})))];
    if (!this.terms.includes(this.state.term)) this.state.term = this.terms[0] || "";
    this.texts = this.rows.map((row) =>
      [this.prompts[row.prompt], Report.response(row), row.answer, row.extracted, row.problem_id].join("\n"),
    );
    this.current = null;
    this.closeDetail();
    this.drawControls();
    this.refresh();
  }

  drawControls() {
    const { make, select } = Report;
    const { state } = this;
    const kinds = [...new Set(this.files.map((file) => file.kind))];
    const { steps } = this;
    const options = steps.map((step) => [step, `step ${step}`]);
    if (steps.length > 1) options.push([ALL, "all steps"]);
    const at = steps.indexOf(Number(state.step));
    const jump = (by, text, label) =>
      make("button", { type: "button", "aria-label": label, disabled: state.step === ALL || steps[at + by] === undefined, click: () => this.step(steps[at + by]) }, text);
    const search = make("input", { type: "search", placeholder: "text in prompt or response", "aria-label": "Search", input: () => this.change("query", search.value) });
    search.value = state.query;
    const pattern = make("input", { type: "checkbox", class: "pattern", change: () => this.change("pattern", pattern.checked) });
    pattern.checked = state.pattern;
    this.search = search;
    const more = make("button", { type: "button", class: "more-filters", "aria-expanded": String(state.open), "aria-controls": "ranges", click: () => {
      state.open = !state.open;
      more.setAttribute("aria-expanded", String(state.open));
      this.extra.hidden = !state.open;
    } }, "Ranges");
    const parts = [
      kinds.length > 1 ? select("From", kinds.map((kind) => [kind, kind]), state.kind, (kind) => this.kind(kind)) : null,
      this.runs && this.runs.length > 1 ? select("Run", [[ALL, "all runs"], ...this.runs.map((run, i) => [i, run.name])], state.run, (run) => this.run(run)) : null,
      make("div", { class: "steps" }, select("Step", options, state.step, (step) => this.step(step)), jump(-1, "\u2039", "Previous step"), jump(1, "\u203a", "Next step")),
      this.sets.length ? select("Set", [["", "all sets"], ...this.sets.map((set) => [set, set])], state.set, (set) => this.change("set", set)) : null,
      this.filterButtons(),
      make("label", { class: "field grow" }, make("span", {}, "Search"), search),
      make("label", { class: "toggle" }, pattern, " Regular expression"),
      select("Sort", Object.entries(ORDERS).map(([name, [text]]) => [name, text]), state.sort, (sort) => this.change("sort", sort)),
      more,
    ];
    this.controls.replaceChildren(...parts.filter(Boolean));
    this.drawRanges();
  }

  drawRanges() {
    const { make, select } = Report;
    const { state } = this;
    const bound = (name, side, text) => {
      const take = () => {
        state.ranges[`${name}-${side}`] = input.value;
        this.refresh();
      };
      const input = make("input", { type: "number", step: "any", class: "bound", "data-bound": `${name}-${side}`, input: take, change: take });
      input.value = state.ranges[`${name}-${side}`] ?? "";
      return make("label", { class: "field" }, make("span", {}, text), input);
    };
    const range = (name, label) => [bound(name, "from", `${label} from`), bound(name, "to", "to")];
    this.extra.hidden = !state.open;
    this.extra.replaceChildren(...[
      ...range("reward", "Reward"),
      ...(this.terms.length ? [select("Reward term", this.terms.map((term) => [term, term]), state.term, (term) => this.change("term", term)), ...range("term", "Value")] : []),
      ...range("length", "Length"),
      make("button", { type: "button", click: () => {
        state.ranges = {};
        this.drawRanges();
        this.refresh();
      } }, "Clear ranges"),
    ]);
  }

  filterButtons() {
    const group = Report.make("div", { class: "filters", role: "group", "aria-label": "Filter" });
    for (const [name, [label, test]] of Object.entries(FILTERS)) {
      const total = this.rows.filter(test).length;
      const button = Report.make(
        "button",
        { type: "button", "data-filter": name, "aria-pressed": String(this.state.filter === name), click: () => {
          this.change("filter", name);
          for (const other of group.children) other.setAttribute("aria-pressed", String(other === button));
        } },
        `${label} `,
        Report.make("small", {}, String(total)),
      );
      group.append(button);
    }
    return group;
  }

  change(name, value) {
    this.state[name] = value;
    this.refresh();
  }

  /* Groups of the rows that pass the filters, each a list of row indices. */
  select() {
    const { filter, query, pattern, set, sort } = this.state;
    const { test, error } = Report.matcher(query, pattern);
    this.search.setAttribute("aria-invalid", String(Boolean(error)));
    this.fault = error ? `This is no regular expression: ${error}. ` : "";
    const groups = new Map();
    this.rows.forEach((row, i) => {
      if (!FILTERS[filter][1](row) || (set && row.set !== set) || !this.inRanges(row)) return;
      if (test && !test(this.texts[i])) return;
      const key = groupKey(row);
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(i);
    });
    const found = [...groups.values()];
    const [, measure, sign] = ORDERS[sort];
    if (!measure) return found;
    const value = (i) => measure(this.rows[i]);
    const less = (a, b) => (a === b ? 0 : sign * (a < b ? -1 : 1));
    for (const group of found) group.sort((a, b) => less(value(a), value(b)) || a - b);
    const mean = (group) => group.reduce((sum, i) => sum + value(i), 0) / group.length;
    return found.sort((a, b) => less(mean(a), mean(b)));
  }

  inRanges(row) {
    const values = { reward: row.reward, term: (row.rewards || {})[this.state.term], length: Report.length(row) };
    return Object.entries(this.state.ranges).every(([name, text]) => {
      const [what, side] = name.split("-");
      const bound = Number(text);
      if (text === "" || !Number.isFinite(bound)) return true;
      const value = values[what];
      if (typeof value !== "number") return false;
      return side === "from" ? value >= bound : value <= bound;
    });
  }

  refresh() {
    this.groups = this.select();
    this.order = this.groups.flat();
    this.drawn = 0;
    this.list.replaceChildren();
    this.list.scrollTop = 0;
    this.more();
    const all = new Set(this.rows.map(groupKey)).size;
    this.count.textContent =
      `${this.fault}${this.order.length} of ${this.rows.length} completions, ${this.groups.length} of ${all} groups. ` +
      "Keys j and k open the next and the previous one.";
    if (!this.order.length) this.list.append(Report.make("p", { class: "empty" }, "No completion matches."));
    if (this.order.includes(this.current)) this.mark();
    else {
      this.current = null;
      this.closeDetail();
    }
  }

  more() {
    const next = this.groups.slice(this.drawn, this.drawn + PAGE);
    this.list.querySelector(".more")?.remove();
    this.list.append(...next.map((group) => this.group(group)));
    this.drawn += next.length;
    const left = this.groups.length - this.drawn;
    if (left > 0) {
      this.list.append(Report.make("button", { type: "button", class: "more", click: () => this.more() }, `Show more groups (${left} left)`));
    }
    this.mark();
  }

  group(indices) {
    const first = this.rows[indices[0]];
    return Report.make(
      "article",
      { class: "group" },
      this.origin(first),
      Report.make("p", { class: "question", title: first.problem_id }, this.titles[first.prompt]),
      Report.make("p", { class: "gold" }, "answer ", Report.make("b", {}, first.answer ?? "\u2013")),
      ...indices.map((index) => this.sample(index)),
    );
  }

  /* Which run and step a group is of, where the list shows several. */
  origin(row) {
    const parts = [];
    if (this.runs && this.runs.length > 1 && this.state.run === ALL) parts.push(this.runs[row.run].name);
    if (this.state.step === ALL) parts.push(`step ${row.step}`);
    return parts.length ? Report.make("p", { class: "origin" }, parts.join(", ")) : null;
  }

  sample(index) {
    const row = this.rows[index];
    const [mark, word, tone] = Report.verdict(row);
    const cut = Report.cut(row);
    return Report.make(
      "button",
      { type: "button", class: "sample", "data-row": index, click: () => this.open(index) },
      Report.make("span", { class: `mark ${tone}`, title: word }, mark),
      Report.make("span", { class: "hidden" }, `${word}, reward `),
      Report.make("span", { class: "reward" }, Report.number(row.reward)),
      Report.make("span", { class: "line" }, Report.response(row).slice(0, 200).replace(/\s+/g, " ")),
      cut ? Report.make("span", { class: "cut" }, "truncated") : null,
      Report.make("span", { class: "length" }, row.tokens ? `${row.tokens.length} tok` : ""),
    );
  }

  open(index) {
    this.current = index;
    while (!this.list.querySelector(`[data-row="${index}"]`) && this.drawn < this.groups.length) this.more();
    const row = this.rows[index];
    const button = (text, label, action) => Report.make("button", { type: "button", "aria-label": label, click: action }, text);
    const actions = Report.make(
      "span",
      { class: "actions" },
      button("\u2039", "Previous completion", () => this.move(-1)),
      button("\u203a", "Next completion", () => this.move(1)),
      button("\u00d7", "Close", () => this.leave()),
    );
    this.detail.classList.add("open");
    Report.detail(this.detail, row, this.prompts[row.prompt], actions);
    this.mark(true);
  }

  mark(scroll) {
    for (const old of this.list.querySelectorAll("[aria-current]")) old.removeAttribute("aria-current");
    const button = this.list.querySelector(`[data-row="${this.current}"]`);
    if (!button) return;
    button.setAttribute("aria-current", "true");
    if (scroll) button.scrollIntoView({ block: "nearest" });
  }

  move(by) {
    if (!this.order.length) return;
    const at = this.order.indexOf(this.current);
    const next = at < 0 ? 0 : Math.max(0, Math.min(this.order.length - 1, at + by));
    this.open(this.order[next]);
  }

  closeDetail() {
    this.detail.classList.remove("open");
    document.getElementById("tip").hidden = true;
    this.detail.replaceChildren(Report.make("p", { class: "empty" }, "Choose a completion to read it token by token."));
  }

  leave() {
    const button = this.list.querySelector(`[data-row="${this.current}"]`);
    this.current = null;
    this.mark();
    this.closeDetail();
    if (button) button.focus();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
    const inList = this.list.contains(event.target);
    const by = { j: 1, k: -1, ...(inList ? { ArrowDown: 1, ArrowUp: -1 } : {}) }[event.key];
    if (by !== undefined) {
      event.preventDefault();
      this.move(by);
      if (inList) this.list.querySelector("[aria-current]")?.focus({ preventScroll: true });
    } else if (event.key === "Escape" && this.current !== null) this.leave();
  }
};
