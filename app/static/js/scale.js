// Numbers -> places on an axis: extents, ticks, smoothing, thinning. Knows no document.

/** [low, high] of `values` with some air; never empty. */
export function extent(values, { log = false, air = 0.06 } = {}) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (log && value <= 0) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (low > high) return log ? [0.1, 1] : [0, 1];
  if (log) return [low / 1.15, high * 1.15];
  const room = (high - low || Math.abs(high) || 1) * air;
  return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
}

export function scale([low, high], [from, to], log = false) {
  const f = log ? Math.log : (v) => v;
  const span = f(high) - f(low) || 1;
  const place = (value) => from + ((f(value) - f(low)) / span) * (to - from);
  place.invert = (at) => {
    const value = f(low) + ((at - from) / (to - from)) * span;
    return log ? Math.exp(value) : value;
  };
  return place;
}

/** About `count` round numbers between low and high. */
export function ticks([low, high], count, { log = false, whole = false } = {}) {
  if (log) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      for (const digit of [1, 2, 5]) found.push(digit * 10 ** power);
    }
    const inside = found.filter((v) => v >= low && v <= high);
    if (inside.length >= 2) return inside.length > 2 * count ? inside.filter((v) => /^1/.test(v.toExponential())) : inside;
  }
  const rough = (high - low) / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].find((m) => m * power >= rough) * power;
  if (whole) step = Math.max(1, Math.round(step));
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

/** Exponential moving average without the bias of its start (Kingma & Ba 2015, section 3). */
export function smooth(points, weight) {
  let [average, mass] = [0, 0];
  return points.map(({ x, y }) => {
    average = weight * average + (1 - weight) * y;
    mass = weight * mass + (1 - weight);
    return { x, y: average / mass };
  });
}

/** At most about `count` points, the extremes of each stretch among them. */
export function thin(points, count) {
  if (points.length <= count) return points;
  const width = (2 * points.length) / count;
  const kept = [points[0]];
  for (let from = 1; from < points.length - 1; from += width) {
    const stretch = points.slice(Math.floor(from), Math.min(Math.floor(from + width), points.length - 1));
    if (!stretch.length) continue;
    const low = stretch.reduce((a, b) => (b.y < a.y ? b : a));
    const high = stretch.reduce((a, b) => (b.y > a.y ? b : a));
    kept.push(...(low.x <= high.x ? [low, high] : [high, low]).filter((p, i, both) => !i || p !== both[0]));
  }
  kept.push(points.at(-1));
  return kept;
}

/** The index of the point nearest to `x`; points are in order of x. */
export function nearest(points, x) {
  let [low, high] = [0, points.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle].x < x) low = middle;
    else high = middle;
  }
  return high >= 0 && Math.abs(points[high].x - x) < Math.abs(points[low].x - x) ? high : low;
}
