// Puts what the server says onto the page. Nothing here is ever read as HTML.

import { answers, duration, percent, requests, series, whole } from "./figures.js";

const LEVELS = { ok: "OK", watch: "LOOK", act: "ACT" };
const BREAKERS = {
  closed: "in use", half_open: "warming up", open: "away", not_configured: "not configured",
};

export const by = (id) => document.getElementById(id);

/** Sets a text, and leaves the page alone when it says so already. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Shows a text, or hides its place when there is none. */
export function sayOrHide(element, text) {
  element.hidden = !text;
  say(element, text ?? "");
}

export function list(element, texts) {
  element.hidden = texts.length === 0;
  if ([...element.children].map((item) => item.textContent).join("\n") === texts.join("\n")) return;
  element.replaceChildren(...texts.map((text) => made("li", text)));
}

export function made(tag, text, title) {
  const element = document.createElement(tag);
  element.textContent = text;
  if (title) element.title = title;
  return element;
}

/** A moment by this browser's clock and zone; the server's words on hovering. */
export function moment(text) {
  if (!text) return "–";
  const at = new Date(text);
  const today = at.toDateString() === new Date().toDateString();
  return today ? at.toLocaleTimeString() : at.toLocaleString();
}

/** Everything that a status says. `recent` knows what it said before. */
export function show(status, recent) {
  say(by("version"), status.version);
  standing(status.standing);
  tiles(status, recent);
  sides(status, recent);
  store(status);
  rest(status);
  fleet(status.fleet);
}

function standing({ level, headline, why, cure, notes }) {
  by("standing").dataset.level = level;
  say(by("level"), LEVELS[level] ?? level);
  say(by("headline"), headline);
  say(by("why"), why);
  sayOrHide(by("cure"), cure);
  list(by("notes"), notes);
}

function tiles(status, recent) {
  say(by("keys-percent"), percent(status.percent_in_force));
  const { share, samples, minutes } = status.requests;
  say(by("requests-percent"), share === null ? "–" : percent(share * 100));
  say(by("requests-of"), `of ${whole(samples)} requests, last ${minutes || 0} min, meant for Redis`);
  say(by("exposure"), status.exposure === null ? "–" : percent(status.exposure * 100));
  const rates = recent.rates();
  say(by("rate"), rates ? whole(rates.all) : "–");
}

function sides({ figures }, recent) {
  const all = {};
  for (const backend of ["memory", "redis"]) {
    for (const state of ["allow", "throttle", "block"]) {
      all[`${backend}.${state}`] = whole(requests(figures, backend, state));
    }
    for (const share of [50, 95, 99]) {
      all[`${backend}.p${share}`] = duration(recent.percentile(backend, share / 100));
    }
  }
  for (const arm of ["control", "canary"]) {
    for (const origin of ["upstream", "gateway", "limiter"]) {
      all[`${arm}.${origin}`] = whole(answers(figures, arm, ["5xx"], origin));
    }
    all[`${arm}.auth`] = whole(answers(figures, arm, ["401", "403"], "upstream"));
  }
  for (const cell of document.querySelectorAll("[data-figure]")) say(cell, all[cell.dataset.figure] ?? "–");
  const causes = (name, label) => series(figures, name).map(([labels, value]) => `${labels[label]} ${whole(value)}`);
  const parts = [
    ["Decided in memory although Redis was wanted", causes("fallbacks_total", "reason")],
    ["Budgets begun anew", causes("budget_resets_total", "cause")],
    ["Rollbacks", causes("rollbacks_total", "cause")],
  ];
  say(by("elsewhere"), parts.map(([name, found]) => `${name}: ${found.join(", ") || "none"}.`).join(" "));
}

function store({ redis }) {
  const facts = [["State", BREAKERS[redis.state] ?? redis.state]];
  if (redis.configured) {
    facts.push(["Since", moment(redis.since)]);
    if (redis.next_probe_in_ms !== null) facts.push(["Tried again in", duration(redis.next_probe_in_ms / 1000)]);
    facts.push(["Address", redis.master ? `${redis.address}, master ${redis.master}` : redis.address]);
    if (redis.last_error) facts.push(["Last error", `${redis.last_error_kind}: ${redis.last_error}`]);
    if (redis.protocol) facts.push(["Protocol", redis.protocol]);
    if (redis.probe_ms !== null) facts.push(["Last probe took", duration(redis.probe_ms / 1000)]);
    facts.push(["Calls under way", whole(redis.in_flight)]);
    facts.push(["Commands today", commands(redis.commands)]);
  }
  define(by("store"), facts);
  const nodes = by("nodes");
  nodes.hidden = !redis.nodes;
  if (!redis.nodes) return;
  const rows = redis.nodes.map((node) => [
    node.address, `${percent(node.slots_percent)} of the slots`, BREAKERS[node.state] ?? node.state, node.last_error_kind ?? "",
  ]);
  const table = made("table", "");
  table.className = "list";
  table.append(...rows.map(row));
  nodes.replaceChildren(table);
}

function commands(spent) {
  if (!spent) return "–";
  if (spent.per_day === null) return `${whole(spent.today)} (redis.commands_per_day is not set)`;
  const share = percent((spent.today / Math.max(spent.per_day, 1)) * 100);
  const until = spent.exhausted_at ? `; at this pace used up at ${moment(spent.exhausted_at)}` : "";
  return `${whole(spent.today)} of ${whole(spent.per_day)}, ${share}${until}`;
}

function rest(status) {
  const { memory, policies, database, fallback_share: share, rollout } = status;
  define(by("rest"), [
    ["Running since", `${moment(status.started_at)} (${duration(status.uptime_seconds)})`],
    ["Revision", `${rollout.revision} of epoch ${rollout.epoch}`],
    ["Only the environment may raise", status.pinned_by_env ? "yes" : "no"],
    ["Keys in memory", `${whole(memory.keys)} of ${whole(memory.max_keys)}`],
    ["Forgotten while in debt", whole(memory.evicted_in_debt)],
    ["Blocked by a penalty", whole(status.blocked_keys)],
    ["Its share of a limit without Redis", `${percent(share.share * 100)} (${share.source.replace("_", " ")})`],
    ["Policies", `${policies.policies} in ${policies.rules} rules, ${policies.file ?? "compiled in"}, read ${moment(policies.loaded_at)}`],
    ["Disk", database.state === "ok" ? database.place : `${database.place}: ${database.trouble}`],
    ["You", `${status.caller.name}, may ${status.caller.scope}`],
  ]);
}

function fleet({ instances, agreed, members }) {
  const words = instances === 1 ? "this instance alone" : `${instances} instances, ${agreed ? "all agree" : "they do not agree"}`;
  say(by("fleet-words"), words);
  const rows = members.map((one) => {
    const name = one.source === "this" ? `${one.name ?? one.id} (this)` : one.name ?? one.id ?? one.address;
    const cells = one.trouble && one.id === null
      ? [name, "", "", "", one.trouble, "", "", ""]
      : [
        name, one.version ?? "", `${one.revision} of ${one.epoch}`, percent(one.percent ?? 0),
        BREAKERS[one.breaker] ?? one.breaker ?? "", one.exposure === null ? "–" : percent(one.exposure * 100),
        duration((one.lag_ms ?? 0) / 1000), one.trouble ?? moment(one.last_seen),
      ];
    const line = row(cells);
    line.classList.toggle("differs", one.differs);
    return line;
  });
  by("fleet").tBodies[0].replaceChildren(...rows);
}

/** The rows of the trail. */
export function audit(rows) {
  const value = (one) => {
    if (one === null) return "";
    if (typeof one !== "object") return String(one);
    if ("percent" in one) return `${percent(one.percent)}${one.backend === "memory" ? " (flag: memory)" : ""}`;
    return JSON.stringify(one);
  };
  return rows.map((one) => {
    const line = row([moment(one.at), one.actor, one.action, value(one.from), value(one.to), one.reason,
      one.durable ? one.result : `${one.result}, not on the disk yet`]);
    line.firstElementChild.title = one.at;
    return line;
  });
}

function row(cells) {
  const line = document.createElement("tr");
  line.append(...cells.map((cell) => made("td", cell)));
  return line;
}

function define(element, facts) {
  const text = facts.flat().join("\n");
  if (element.dataset.said === text) return;
  element.dataset.said = text;
  element.replaceChildren(...facts.flatMap(([name, value]) => [made("dt", name), made("dd", value)]));
}

