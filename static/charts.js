// Three small charts over the last ten minutes. What they draw is said in words beside them.

const KEPT_S = 600;

function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return { memory: of("--memory"), redis: of("--redis"), act: of("--act"), quiet: of("--quiet"), line: of("--line") };
}

/** A chart of `names` lines in `element`; `format` writes a value of its axis, which reaches `least` at least. */
export class Chart {
  #element;
  #names;
  #format;
  #data;
  #least;
  #plot = null;

  constructor(element, names, format, least) {
    this.#element = element;
    this.#names = names;
    this.#format = format;
    this.#least = least;
    this.#data = [[], ...names.map(() => [])];
    new ResizeObserver(() => this.#resize()).observe(element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#make());
  }

  /** Takes values as of `at`, in milliseconds; null leaves a gap. */
  add(at, values) {
    const [times, ...lines] = this.#data;
    times.push(at / 1000);
    lines.forEach((line, place) => line.push(values[place]));
    while (times.length && times[0] < at / 1000 - KEPT_S) this.#data.forEach((column) => column.shift());
    if (!this.#plot) this.#make();
    this.#plot?.setData(this.#data);
  }

  /** A gap: what lies between was not seen. */
  gap(at) {
    this.add(at, this.#names.map(() => null));
  }

  #resize() {
    const width = this.#element.clientWidth;
    if (this.#plot && width > 0) this.#plot.setSize({ width, height: 150 });
    else if (width > 0 && this.#data[0].length) this.#make();
  }

  #make() {
    const width = this.#element.clientWidth;
    if (!width || !globalThis.uPlot) return;
    this.#plot?.destroy();
    const colour = colours();
    const axis = { stroke: colour.quiet, grid: { stroke: colour.line, width: 1 }, ticks: { show: false } };
    const lines = this.#names.map((name) => ({
      label: name, stroke: colour[name] ?? colour.act, width: 2, points: { show: false }, spanGaps: false,
      dash: name === "redis" ? [6, 3] : undefined,
    }));
    this.#plot = new globalThis.uPlot({
      width, height: 150, legend: { show: false }, cursor: { show: false },
      scales: { y: { range: (_, low, high) => [0, Math.max(high ?? 0, this.#least) * 1.1] } },
      axes: [axis, { ...axis, size: 62, values: (_, values) => values.map(this.#format) }],
      series: [{}, ...lines],
    }, this.#data, this.#element);
  }
}
