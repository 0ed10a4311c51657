"use strict";
/* Numbers on paper: ticks, formats, smoothing, and thinning to what a screen can show. */

/* About `count` round values that span [low, high]. */
Report.ticks = (low, high, count, whole) => {
  const span = high - low || 1;
  const raw = span / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw));
  const factor = [1, 2, 5, 10].find((value) => value * power >= raw * 0.999);
  const step = whole ? Math.max(1, Math.round(factor * power)) : factor * power;
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) {
    ticks.push(Number((i * step).toPrecision(12)));
  }
  return ticks;
};

/* Round values on a logarithmic axis: powers of ten, with 2 and 5 between where there is room. */
Report.logTicks = (low, high, count) => {
  const first = Math.floor(Math.log10(low));
  const last = Math.ceil(Math.log10(high));
  const stride = Math.max(1, Math.ceil((last - first) / count));
  const pick = (factors) => {
    const ticks = [];
    for (let power = first; power <= last; power += stride) {
      for (const factor of factors) {
        const value = Number((factor * 10 ** power).toPrecision(3));
        if (value >= low * 0.999 && value <= high * 1.001) ticks.push(value);
      }
    }
    return ticks;
  };
  for (const factors of [[1], [1, 3], [1, 2, 5]]) {
    if (pick(factors).length >= 3) return pick(factors);
  }
  return Report.ticks(low, high, count).filter((tick) => tick > 0);
};

/* Index of the point [x, ...] nearest to x in a list in order of x; -1 in an empty one. */
Report.nearest = (points, x) => {
  let low = 0;
  let high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle + 1;
    else high = middle;
  }
  if (low > 0 && Math.abs(points[low - 1][0] - x) < Math.abs(points[low][0] - x)) low -= 1;
  return points.length ? low : -1;
};

const trim = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
const minus = (text) => text.replaceAll("-", "\u2212");

Report.number = (value, format) => {
  if (value === null || value === undefined) return "\u2013";
  if (format === "fraction") return `${minus((100 * value).toFixed(1))} %`;
  if (format === "seconds") return `${minus(value.toFixed(value < 10 ? 2 : 1))} s`;
  if (format === "count") {
    const digits = Number.isInteger(value) || Math.abs(value) >= 1000 ? 0 : 1;
    return minus(value.toLocaleString("en-US", { maximumFractionDigits: digits }));
  }
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6 || format === "scientific")) {
    return minus(value.toExponential(2).replace(/\.?0+e/, "e"));
  }
  return minus(size >= 1000 ? value.toFixed(0) : trim(value.toPrecision(4)));
};

Report.tickLabel = (value, format) => {
  if (format === "fraction") return `${minus(trim((100 * value).toPrecision(6)))} %`;
  if (format === "seconds") return `${minus(trim(value.toPrecision(6)))} s`;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) {
    return minus(value.toExponential(1).replace(/\.0e/, "e").replace("e+", "e"));
  }
  return minus(trim(value.toPrecision(6)));
};

/* Exponential moving average with the start's bias taken out, so that it begins at the data. */
Report.smooth = (values, weight) => {
  let sum = 0;
  let total = 0;
  return values.map((value) => {
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
};

/* Keep the first, lowest, highest and last point of every pixel column. */
Report.thin = (points, columns) => {
  if (points.length <= 4 * columns) return points;
  const low = points[0][0];
  const span = points[points.length - 1][0] - low || 1;
  const kept = [];
  let start = 0;
  const column = (i) => Math.floor(((points[i][0] - low) / span) * columns);
  for (let i = 1; i <= points.length; i += 1) {
    if (i < points.length && column(i) === column(start)) continue;
    let least = start;
    let most = start;
    for (let k = start; k < i; k += 1) {
      if (points[k][1] < points[least][1]) least = k;
      if (points[k][1] > points[most][1]) most = k;
    }
    const chosen = [...new Set([start, least, most, i - 1])].sort((a, b) => a - b);
    kept.push(...chosen.map((k) => points[k]));
    start = i;
  }
  return kept;
};
