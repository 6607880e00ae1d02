// Arithmetic on the counters that the server tells: rates, shares and percentiles of a while.

const WHILE_MS = 60_000;
const BACKENDS = ["memory", "redis"];
const STATES = ["allow", "throttle", "block"];

/** One counter; what the server leaves out is 0. */
export function figure(figures, name, labels = {}) {
  const inside = Object.keys(labels).sort().map((label) => `${label}="${labels[label]}"`).join(",");
  return figures[inside ? `tidegate_${name}{${inside}}` : `tidegate_${name}`] ?? 0;
}

/** All series of a name, as `[labels, value]`. */
export function series(figures, name) {
  const begin = `tidegate_${name}{`;
  return Object.entries(figures)
    .filter(([key]) => key.startsWith(begin))
    .map(([key, value]) => {
      const pairs = [...key.slice(begin.length, -1).matchAll(/([^=,]+)="([^"]*)"/g)];
      return [Object.fromEntries(pairs.map(([, label, text]) => [label, text])), value];
    });
}

/** Requests that a backend decided one way, of both arms. */
export function requests(figures, backend, state) {
  return ["canary", "control"].reduce(
    (sum, arm) => sum + figure(figures, "requests_total", { arm, backend, state }), 0);
}

/** Answers to keys of an arm. */
export function answers(figures, arm, classes, origin) {
  return classes.reduce(
    (sum, one) => sum + figure(figures, "http_responses_total", { arm, class: one, origin }), 0);
}

/** The figures of the last minute, from which differences are made. */
export class Recent {
  #all = [];

  /** Takes figures as of now. A counter that went back means another process: what came before is forgotten. */
  add(at, figures, started) {
    const last = this.#all.at(-1);
    if (last && last.started !== started) this.#all = [];
    this.#all.push({ at, figures, started });
    while (this.#all.length > 2 && at - this.#all[0].at > WHILE_MS) this.#all.shift();
  }

  /** What each backend decided in a second, between the last two figures that are not the same moment. */
  rates() {
    const [before, now] = [this.#all.at(-2), this.#all.at(-1)];
    if (!before || now.at <= before.at) return null;
    const seconds = (now.at - before.at) / 1000;
    const of = (backend, states) => states.reduce(
      (sum, state) => sum + requests(now.figures, backend, state) - requests(before.figures, backend, state), 0) / seconds;
    const rates = Object.fromEntries(BACKENDS.map((backend) => [backend, of(backend, STATES)]));
    const denied = BACKENDS.reduce((sum, backend) => sum + of(backend, ["throttle", "block"]), 0);
    const all = rates.memory + rates.redis;
    return { ...rates, all, denied: all > 0 ? denied / all : null };
  }

  /** Seconds that `share` of a backend's decisions of the last minute took at most; null: there were none. */
  percentile(backend, share) {
    const [before, now] = [this.#all[0], this.#all.at(-1)];
    if (!before || before === now) return null;
    const buckets = (figures) => {
      const all = series(figures, "decision_duration_seconds_bucket").filter(([labels]) => labels.backend === backend);
      return new Map(all.map(([labels, value]) => [labels.le === "+Inf" ? Infinity : Number(labels.le), value]));
    };
    const [old, young] = [buckets(before.figures), buckets(now.figures)];
    const counts = [...young].sort(([a], [b]) => a - b).map(([edge, value]) => [edge, value - (old.get(edge) ?? 0)]);
    const total = counts.at(-1)?.[1] ?? 0;
    if (total <= 0) return null;
    return counts.find(([, count]) => count >= total * share)[0];
  }
}

const NUMBER = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const FINE = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });

export const whole = (value) => NUMBER.format(value);
export const percent = (value) => `${FINE.format(value)} %`;
export const rate = (value) => (value >= 100 ? NUMBER : FINE).format(value);

/** Seconds as people say them. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (!Number.isFinite(seconds)) return "> 250 ms";
  if (seconds === 0) return "0 s";
  if (seconds < 1e-3) return `${FINE.format(seconds * 1e6)} µs`;
  if (seconds < 1) return `${FINE.format(seconds * 1e3)} ms`;
  if (seconds < 120) return `${FINE.format(Math.round(seconds * 10) / 10)} s`;
  if (seconds < 7200) return `${NUMBER.format(seconds / 60)} min`;
  if (seconds < 172_800) return `${FINE.format(Math.round(seconds / 360) / 10)} h`;
  return `${NUMBER.format(seconds / 86_400)} d`;
}
