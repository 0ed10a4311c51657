"use strict";
/* What a page from a dashboard does and a page from a file does not: it asks its server what was
   appended. Zoom, filters and what is being read stay as they are. */

Report.request = async (url) => {
  const answer = await fetch(url, { cache: "no-store" });
  if (!answer.ok) throw new Error((await answer.text()).slice(0, 200));
  return answer.json();
};

/* Call `ask` every so many seconds while somebody looks; tell in `status` when it fails. */
Report.every = (seconds, status, ask) => {
  let waiting = null;
  let asking = false;
  const turn = async () => {
    clearTimeout(waiting);
    if (asking || document.hidden) return;
    asking = true;
    try {
      await ask();
      status.textContent = "";
    } catch (error) {
      status.textContent = error instanceof TypeError
        ? "The dashboard does not answer; it may have ended. What is shown is what came last."
        : `The dashboard says: ${error.message}`;
    }
    status.hidden = !status.textContent;
    asking = false;
    waiting = setTimeout(turn, 1000 * seconds);
  };
  document.addEventListener("visibilitychange", turn);
  waiting = setTimeout(turn, 1000 * seconds);
};

const cut = (run, length) => {
  for (const list of [run.steps, run.tokens, run.seconds, ...Object.values(run.columns)]) {
    if (list.length > length) list.length = length;
  }
  const last = length ? run.steps[length - 1] : -1;
  for (const [name, steps] of Object.entries(run.notFinite)) run.notFinite[name] = steps.filter((step) => step <= last);
};

/* Whether a run has logged a metric at the last of its steps. */
const logged = (run, name) => {
  const n = run.steps.length;
  const value = (run.columns[name] || [])[n - 1];
  return (value !== undefined && value !== null) || (run.notFinite[name] || []).includes(run.steps[n - 1]);
};

/* Append rows to a run as rlvr/report/history.py joins lines: a second line of a step that shares no
   metric with the first is joined to it; any other step that is not larger than the one before
   rewinds the run to it. */
Report.append = (run, rows) => {
  for (const { step, values, broken, tokens, seconds } of rows) {
    let n = run.steps.length;
    const names = [...Object.keys(values), ...broken];
    const joined = n > 0 && run.steps[n - 1] === step && !names.some((name) => logged(run, name));
    if (!joined) {
      while (n > 0 && run.steps[n - 1] >= step) n -= 1;
      cut(run, n);
      run.steps.push(step);
      run.tokens.push(n ? run.tokens[n - 1] : 0);
      run.seconds.push(n ? run.seconds[n - 1] : 0);
      n += 1;
    }
    run.tokens[n - 1] += tokens;
    run.seconds[n - 1] += seconds;
    for (const [name, value] of Object.entries(values)) (run.columns[name] ||= [])[n - 1] = value;
    for (const name of broken) {
      (run.columns[name] ||= [])[n - 1] = null;
      (run.notFinite[name] ||= []).push(step);
    }
  }
};

Report.duration = (seconds) => {
  const minutes = Math.round(seconds / 60);
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
};

/* A run's state in words: "running, step 31 of 60, about 2 min left". */
Report.stateText = (state) => [
  state.state + (state.reason ? ` (${state.reason})` : ""),
  `step ${state.step}${state.total ? ` of ${state.total}` : ""}`,
  state.eta !== null && state.eta > 0 ? `about ${Report.duration(state.eta)} left` : null,
].filter(Boolean).join(", ");

/* Keep a page of runs up to date. `show` is given the states, and whether values came. */
Report.live = (report, curves, browser, show) => {
  const { live } = report;
  if (!live) return;
  const runs = curves.view.runs;
  const status = Report.make("p", { class: "notes trouble", role: "alert", hidden: true });
  const back = Report.make("p", { class: "back" }, Report.make("a", { href: "." }, "\u2190 All runs"));
  document.getElementById("head").prepend(back, status);
  const count = (i) => report.completions.filter((file) => file.run === i).length;
  const names = () => runs.reduce((sum, run) => sum + Object.keys(run.columns).length, 0);

  const ask = async () => {
    const query = live.runs.map((run, i) => new URLSearchParams({ run, since: live.positions[i], files: count(i) })).join("&");
    const news = await Report.request(`news?${query}`);
    const before = names();
    let grown = false;
    let files = false;
    news.forEach((item, i) => {
      live.positions[i] = item.position;
      if (item.restarted) {
        cut(runs[i], 0);
        Report.forgetSteps();
      }
      Report.append(runs[i], item.rows);
      grown ||= item.restarted || item.rows.length > 0;
      if (!item.files) return;
      files = true;
      report.completions = [...report.completions.filter((file) => file.run !== i), ...item.files];
    });
    if (grown) {
      const chosen = live.runs.map((run) => new URLSearchParams({ run })).join("&");
      const charts = names() === before ? report.charts : await Report.request(`plan?overlay=${report.runs ? 1 : 0}&${chosen}`);
      curves.renewed(charts);
    }
    if (files) browser.renewed(report.completions);
    show(news.map((item) => item.state), grown);
  };
  Report.every(live.every, status, ask);
  ask().catch(() => {});
};
