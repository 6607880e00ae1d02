// The operator's page: listens to the server and keeps saying what it hears, or since when it hears nothing.

import { Refused, ask, events, token } from "./api.js";
import { Chart } from "./charts.js";
import { learn, ready } from "./change.js";
import { Recent, duration, percent, rate } from "./figures.js";
import { audit, by, say, sayOrHide, show } from "./show.js";

/** The server speaks each second. */
const SILENCE_MS = 4_000;
const AGAIN_MS = 2_000;
const ROWS = 20;

const recent = new Recent();
const charts = {
  rates: new Chart(by("chart-rates"), ["memory", "redis"], (value) => (value === null ? "" : rate(value)), 1),
  denied: new Chart(by("chart-denied"), ["denied"], (value) => (value === null ? "" : percent(value * 100)), 0.01),
  p95: new Chart(by("chart-p95"), ["memory", "redis"], (value) => duration(value), 1e-4),
};

/** Ends the listening of this sign-in. */
let session = null;
/** Whether the stream of events comes through. */
let isStreaming = false;
let heardAt = null;
let trailOf = null;
let cursor = null;

ready(() => void lookOnce());
by("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  token.set(by("token").value.trim());
  by("token").value = "";
  begin();
});
by("sign-out").addEventListener("click", () => end(null));
by("audit-older").addEventListener("click", () => void trail(true));
setInterval(tellAge, 500);

function begin() {
  sayOrHide(by("signed-out-because"), null);
  session?.abort();
  session = new AbortController();
  void listen(session.signal);
}

function end(why) {
  session?.abort();
  session = null;
  heardAt = null;
  trailOf = null;
  token.clear();
  document.body.classList.remove("stale");
  for (const id of ["board", "rollback", "sign-out"]) by(id).hidden = true;
  by("sign-in").hidden = false;
  sayOrHide(by("signed-out-because"), why);
  state("off", "Not signed in");
  by("token").focus();
}

async function listen(signal) {
  while (!signal.aborted) {
    try {
      await hear(signal);
    } catch (fault) {
      if (signal.aborted) return;
      if (fault instanceof Refused && fault.status === 401) return end("This token is not accepted.");
      if (fault instanceof Refused && fault.status === 403) return end(fault.message);
      if (fault instanceof TypeError && heardAt === null && /header|ISO-8859/i.test(fault.message)) {
        return end("This can't be a token: it has letters that no token has.");
      }
    }
    // Where something on the way holds events back, asking still works.
    await lookOnce(signal);
    await new Promise((wake) => setTimeout(wake, AGAIN_MS));
  }
}

/** Listens until the stream ends or falls silent. */
async function hear(signal) {
  const quiet = new AbortController();
  const stop = () => quiet.abort();
  signal.addEventListener("abort", stop);
  let timer = setTimeout(stop, SILENCE_MS);
  try {
    for await (const { name, data } of events(quiet.signal)) {
      clearTimeout(timer);
      timer = setTimeout(stop, SILENCE_MS);
      if (name === "revoked") return end(data);
      if (name === "status") {
        isStreaming = true;
        heard(JSON.parse(data));
      }
      if (name === "leaving") return;
    }
  } finally {
    isStreaming = false;
    clearTimeout(timer);
    signal.removeEventListener("abort", stop);
  }
}

/** Asks once. A failure is told by the age of what is shown. */
async function lookOnce(signal = session?.signal) {
  if (!signal) return;
  try {
    const limit = AbortSignal.any([signal, AbortSignal.timeout(SILENCE_MS)]);
    heard(await ask("GET", "status", { signal: limit }));
  } catch (fault) {
    if (fault instanceof Refused && fault.status === 401 && !signal.aborted) end("This token is not accepted any more.");
  }
}

function heard(status) {
  const now = Date.now();
  if (heardAt !== null && now - heardAt > 2 * SILENCE_MS) Object.values(charts).forEach((chart) => chart.gap(now));
  heardAt = now;
  const wasSigningIn = by("sign-in").contains(document.activeElement);
  by("sign-in").hidden = true;
  for (const id of ["board", "rollback", "sign-out"]) by(id).hidden = false;
  recent.add(now, status.figures, status.started_at);
  show(status, recent);
  // What had the focus is gone: who hears the page goes on with what matters.
  if (wasSigningIn) by("headline").focus();
  draw(now);
  learn(status);
  if (isStreaming) state("live", "Live");
  else state("poll", "Asking every two seconds: the stream of events does not come through");
  document.body.classList.remove("stale");
  const revision = `${status.started_at} ${status.etag}`;
  if (trailOf !== revision) {
    trailOf = revision;
    void trail(false);
  }
}

function draw(now) {
  const rates = recent.rates();
  const p95 = ["memory", "redis"].map((backend) => recent.percentile(backend, 0.95));
  if (rates) {
    charts.rates.add(now, [rates.memory, rates.redis]);
    charts.denied.add(now, [rates.denied]);
    say(by("now-rates"), `memory ${rate(rates.memory)}, redis ${rate(rates.redis)}`);
    say(by("now-denied"), rates.denied === null ? "no requests" : percent(rates.denied * 100));
  }
  charts.p95.add(now, p95.map((seconds) => (seconds !== null && Number.isFinite(seconds) ? seconds : null)));
  say(by("now-p95"), `memory ${duration(p95[0])}, redis ${duration(p95[1])}`);
}

/** The trail's newest page, or the one after what is shown. */
async function trail(older) {
  const after = older && cursor ? `&cursor=${encodeURIComponent(cursor)}` : "";
  try {
    const page = await ask("GET", `audit?limit=${ROWS}${after}`);
    cursor = page.next;
    const body = by("audit").tBodies[0];
    if (older) body.append(...audit(page.rows));
    else body.replaceChildren(...audit(page.rows));
    by("audit-older").hidden = cursor === null;
    sayOrHide(by("audit-fault"), page.complete ? null : `Not all of it: ${page.incomplete_because}`);
  } catch (fault) {
    if (!session) return;
    sayOrHide(by("audit-fault"), `The trail can't be read: ${fault.message}`);
    // Tried again with the next word of the server.
    trailOf = null;
  }
}

function tellAge() {
  if (!session || heardAt === null) return;
  const age = Date.now() - heardAt;
  if (age < SILENCE_MS) return;
  document.body.classList.add("stale");
  const since = new Date(heardAt).toLocaleTimeString();
  state("cut", `Cut off: what is shown is of ${since}, ${duration(Math.round(age / 1000))} old`);
}

function state(name, words) {
  by("stream").dataset.state = name;
  say(by("stream"), words);
}
