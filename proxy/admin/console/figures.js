// What is counted since the proxy began, made into what happens just now. Pure: no page, no clock.

export const KEPT_SECONDS = 300;
const RATE_SECONDS = 6; // a rate is that of so long: two samples alone would jump
const QUANTILE_SECONDS = 30; // a quantile needs more

/** The figures of the last minutes, one sample after the other. */
export class History {
  samples = [];

  get last() {
    return this.samples.at(-1) ?? null;
  }

  /** Take a sample. Counters that went back belong to a proxy that began anew: what was before is of no use. */
  add(figures) {
    const last = this.last;
    if (figures.time === last?.time) return;
    if (last && (figures.time < last.time || figures.login_seconds.count < last.login_seconds.count)) this.samples = [];
    this.samples.push(figures);
    const first = figures.time - KEPT_SECONDS;
    while (this.samples[0].time < first) this.samples.shift();
  }

  /** Points of a gauge: pick(sample) gives it. */
  values(pick) {
    return this.samples.map((sample) => [sample.time, pick(sample)]);
  }

  /** Points of a counter's rate by second: pick(sample) gives the counter. */
  rates(pick) {
    return this.samples.slice(1).map((sample, index) => {
      const before = this.#before(index + 1, RATE_SECONDS);
      const change = pick(sample) - pick(before);
      return [sample.time, change >= 0 ? change / (sample.time - before.time) : null];
    });
  }

  /** Points of a quantile of what a histogram took in; null where it took in nothing. */
  quantiles(pick, q) {
    return this.samples.slice(1).map((sample, index) => {
      const before = this.#before(index + 1, QUANTILE_SECONDS);
      return [sample.time, quantile(pick(before).buckets, pick(sample).buckets, q)];
    });
  }

  #before(index, seconds) {
    const sample = this.samples[index];
    let first = index - 1;
    while (first > 0 && sample.time - this.samples[first - 1].time <= seconds) first -= 1;
    return this.samples[first];
  }
}

/** A quantile of what came between two states of a histogram; buckets are [upper bound or null, how many up to it]. */
export function quantile(before, after, q) {
  const came = after.map(([bound, many], index) => [bound, many - (before[index]?.[1] ?? 0)]);
  const all = came.length ? came.at(-1)[1] : 0;
  if (all <= 0) return null;
  const rank = q * all;
  let lower = 0;
  let below = 0;
  for (const [bound, many] of came) {
    if (many >= rank) {
      if (bound === null) return lower; // beyond the last bound: nobody knows how far
      return many > below ? lower + ((bound - lower) * (rank - below)) / (many - below) : bound;
    }
    lower = bound ?? lower;
    below = many;
  }
  return lower;
}

/** The sum of all values of a mapping. */
export const total = (mapping) => Object.values(mapping).reduce((sum, value) => sum + value, 0);
