"use strict";
/* The browser of completions: a step's groups on one side, the opened completion on the other. */

const FILTERS = {
  all: ["All", () => true],
  correct: ["Correct", (row) => row.correct === true],
  wrong: ["Wrong", (row) => row.correct === false],
  truncated: ["Truncated", (row) => row.finish_reason === "length"],
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

Report.Browser = class {
  constructor(host, report) {
    this.host = host;
    this.files = report.completions;
    this.state = { kind: "", id: "", filter: "all", query: "", sort: "sampled", set: "" };
    this.current = null;
    this.list = Report.make("div", { class: "list", "aria-label": "Completions", role: "group" });
    this.detail = Report.make("div", { class: "detail", role: "region", "aria-label": "Opened completion" });
    this.controls = Report.make("div", { class: "controls" });
    this.count = Report.make("p", { class: "count", role: "status" });
    host.append(
      Report.make("h2", { id: "completions-title" }, "Completions"),
      ...report.completionNotes.map((line) => Report.make("p", { class: "help" }, line)),
    );
    if (!this.files.length) {
      host.append(Report.make("p", { class: "empty" }, "The run has kept no completions yet."));
      return;
    }
    host.append(this.controls, this.count, Report.make("div", { class: "panes" }, this.list, this.detail));
    document.addEventListener("keydown", (event) => this.key(event));
    this.kind(this.files.some((file) => file.kind === "training") ? "training" : "evaluation");
  }

  get steps() {
    return this.files.filter((file) => file.kind === this.state.kind);
  }

  kind(kind) {
    this.state.kind = kind;
    this.state.set = "";
    this.step(this.steps[this.steps.length - 1].id);
  }

  step(id) {
    this.state.id = id;
    const { prompts, rows } = Report.data(id);
    this.prompts = prompts;
    this.titles = Report.distinct(prompts);
    this.rows = rows;
    const sets = [...new Set(rows.map((row) => row.set).filter(Boolean))];
    this.sets = sets.length > 1 ? sets : [];
    if (!this.sets.includes(this.state.set)) this.state.set = "";
    this.texts = rows.map((row) =>
      [prompts[row.prompt], Report.response(row), row.answer, row.extracted, row.problem_id].join("\n").toLowerCase(),
    );
    this.current = null;
    this.closeDetail();
    this.drawControls();
    this.refresh();
  }

  drawControls() {
    const { make, select } = Report;
    const kinds = [...new Set(this.files.map((file) => file.kind))];
    const steps = this.steps.map((file) => [file.id, `step ${file.step}`]);
    const at = steps.findIndex(([id]) => id === this.state.id);
    const jump = (by, text, label) =>
      make("button", { type: "button", "aria-label": label, disabled: !steps[at + by], click: () => this.step(steps[at + by][0]) }, text);
    const search = make("input", { type: "search", placeholder: "text in prompt or response", "aria-label": "Search" });
    search.value = this.state.query;
    search.addEventListener("input", () => this.change("query", search.value));
    const orders = [["sampled", "as sampled"], ["high", "reward, highest first"], ["low", "reward, lowest first"]];
    const parts = [
      kinds.length > 1 ? select("From", kinds.map((kind) => [kind, kind]), this.state.kind, (kind) => this.kind(kind)) : null,
      make("div", { class: "steps" }, select("Step", steps, this.state.id, (id) => this.step(id)), jump(-1, "\u2039", "Previous step"), jump(1, "\u203a", "Next step")),
      this.sets.length ? select("Set", [["", "all sets"], ...this.sets.map((set) => [set, set])], this.state.set, (set) => this.change("set", set)) : null,
      this.filterButtons(),
      make("label", { class: "field grow" }, make("span", {}, "Search"), search),
      select("Sort", orders, this.state.sort, (sort) => this.change("sort", sort)),
    ];
    this.controls.replaceChildren(...parts.filter(Boolean));
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
    const { filter, query, set, sort } = this.state;
    const wanted = query.trim().toLowerCase();
    const groups = new Map();
    this.rows.forEach((row, i) => {
      if (!FILTERS[filter][1](row) || (set && row.set !== set) || !this.texts[i].includes(wanted)) return;
      const key = JSON.stringify([row.set, row.group === undefined ? row.problem_id : row.group]);
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(i);
    });
    const found = [...groups.values()];
    if (sort === "sampled") return found;
    const sign = sort === "high" ? -1 : 1;
    const reward = (i) => this.rows[i].reward ?? -Infinity;
    for (const group of found) group.sort((a, b) => sign * (reward(a) - reward(b)) || a - b);
    const mean = (group) => group.reduce((sum, i) => sum + reward(i), 0) / group.length;
    return found.sort((a, b) => sign * (mean(a) - mean(b)));
  }

  refresh() {
    this.groups = this.select();
    this.order = this.groups.flat();
    this.drawn = 0;
    this.list.replaceChildren();
    this.list.scrollTop = 0;
    this.more();
    const all = new Set(this.rows.map((row) => JSON.stringify([row.set, row.group ?? row.problem_id]))).size;
    this.count.textContent =
      `${this.order.length} of ${this.rows.length} completions, ${this.groups.length} of ${all} groups. ` +
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
      Report.make("p", { class: "question", title: first.problem_id }, this.titles[first.prompt]),
      Report.make("p", { class: "gold" }, "answer ", Report.make("b", {}, first.answer ?? "\u2013")),
      ...indices.map((index) => this.sample(index)),
    );
  }

  sample(index) {
    const row = this.rows[index];
    const [mark, word, tone] = Report.verdict(row);
    const cut = row.finish_reason === "length";
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
