// What an operator may do: preview and change the share, roll back.

import { Refused, ask, place } from "./api.js";
import { percent, whole } from "./figures.js";
import { by, list, say, sayOrHide } from "./show.js";

const ROLLED_BACK = "rolled back from the operator's page";

/** The last that the server said, and what was previewed of it. */
let status = null;
let foreseen = null;
let changed = () => {};

/** Readies the forms. `then` is called after a change, with the server's answer. */
export function ready(then) {
  changed = then;
  by("change").addEventListener("submit", preview);
  by("apply").addEventListener("submit", apply);
  by("apply-cancel").addEventListener("click", forget);
  by("typed").addEventListener("input", judge);
  by("rollback").addEventListener("click", openRollback);
  by("rollback-form").addEventListener("submit", rollBack);
  by("rollback-cancel").addEventListener("click", () => by("rollback-dialog").close());
}

/** Takes what the server says. */
export function learn(now) {
  status = now;
  const reads = now.caller.scope === "read";
  by("change-fields").disabled = reads;
  sayOrHide(by("change-barred"), reads ? mayOnlyRead() : now.disabled_by_env
    ? `${now.disabled_by_env}: every change but a rollback waits for the environment to allow Redis.` : null);
  if (!by("percent").value && document.activeElement !== by("percent")) by("percent").value = now.rollout.percent;
  // What was previewed no longer stands.
  if (foreseen && foreseen.etag !== now.etag && !foreseen.isUnderWay) {
    forget();
    say(by("change-outcome"), `${said(now.rollout)} Look at it, and preview again.`);
  }
}

const mayOnlyRead = () => `This token (${status.caller.name}) may only read. Changes need one with the scope operate or admin.`;

const said = ({ updated_by: who, percent: share, reason }) => `${who} changed it to ${percent(share)}: ${reason}.`;

async function preview(event) {
  event.preventDefault();
  forget();
  say(by("change-outcome"), "");
  const wanted = { percent: Number(by("percent").value), reason: by("reason").value.trim() };
  // The flag is off after a rollback by it: who asks for a share wants it in force.
  if (status.rollout.backend === "memory" && wanted.percent > 0) wanted.backend = "redis";
  const etag = status.etag;
  try {
    const answer = await ask("PUT", "rollout?dry_run=1", { body: wanted, headers: { "If-Match": etag } });
    foreseen = { wanted, etag, answer, key: random(), isUnderWay: false };
    showForeseen();
  } catch (fault) {
    say(by("change-outcome"), inWords(fault));
  }
}

function showForeseen() {
  const { wanted, answer: { would, keys, requests, commands_a_day: commands, blockers, warnings } } = foreseen;
  const raises = wantedShare(would.to) > wantedShare(would.from);
  foreseen.raises = raises;
  say(by("foreseen-title"), `From ${percent(wantedShare(would.from))} to ${percent(wantedShare(would.to))} of the keys`);
  const what = [
    keys.moving_to === null ? "No key moves." : `${percent(keys.share_moving * 100)} of the keys move to ${keys.moving_to}.`,
    requests.share_moving === null
      ? "How many requests that is can't be told: none came lately."
      : `That is ${percent(requests.share_moving * 100)} of the ${whole(requests.samples)} requests of the last ${requests.minutes} min.`,
  ];
  if (commands) {
    const allowed = commands.per_day === null ? "" : `, and the plan allows ${whole(commands.per_day)}`;
    what.push(`Redis' commands of this instance a day: ${whole(commands.now)} now, ${whole(commands.then)} then${allowed}.`);
  }
  list(by("foreseen-what"), what);
  list(by("foreseen-warnings"), warnings);
  list(by("foreseen-blockers"), blockers.map(({ detail }) => detail));
  by("typed-row").hidden = !raises;
  by("typed").value = "";
  say(by("typed-label"), `Type ${wanted.percent} to raise to ${percent(wanted.percent)}`);
  say(by("apply-button"), `${raises ? "Raise" : "Set"} to ${percent(wanted.percent)}`);
  by("apply").hidden = blockers.length > 0;
  by("foreseen").hidden = false;
  judge();
  by("foreseen").focus();
}

const wantedShare = ({ backend, percent: share }) => (backend === "memory" ? 0 : share);

function judge() {
  const typed = by("typed").value.trim().replace(/\s*%$/, "");
  by("apply-button").disabled = !foreseen
    || (foreseen.raises && (typed === "" || Number(typed) !== foreseen.wanted.percent));
}

async function apply(event) {
  event.preventDefault();
  if (!foreseen || by("apply-button").disabled) return;
  by("apply-button").disabled = true;
  foreseen.isUnderWay = true;
  try {
    const headers = { "If-Match": foreseen.etag, "Idempotency-Key": foreseen.key };
    const outcome = await ask("PUT", "rollout", { body: foreseen.wanted, headers });
    forget();
    by("reason").value = "";
    say(by("change-outcome"), done(outcome));
    changed(outcome);
  } catch (fault) {
    if (fault instanceof Refused) {
      forget();
      say(by("change-outcome"), fault.status === 412 ? `Nothing was changed: somebody was faster. ${fault.message}` : inWords(fault));
      changed(null);
    } else {
      // Asked again by the same key, it is done once.
      foreseen.isUnderWay = false;
      judge();
      say(by("change-outcome"), "No answer came, so it may have been done or not. The same button asks again and does it once.");
    }
  }
}

function done({ percent: share, percent_in_force: now, applied, pending = [], durable, effective_at: at }) {
  const when = at && now !== share ? `, in force at ${new Date(at).toLocaleTimeString()}` : "";
  const where = applied ? ` Known to ${applied} instances${pending.length ? `, not to ${pending.join(", ")}` : ""}.` : "";
  const kept = durable === false ? " It is kept in memory only: neither the disk nor Redis took it." : "";
  return `Done: ${percent(share)}${when}.${where}${kept}`;
}

function forget() {
  foreseen = null;
  by("foreseen").hidden = true;
}

function openRollback() {
  const reads = status?.caller.scope === "read";
  sayOrHide(by("rollback-barred"), reads ? mayOnlyRead() : null);
  by("rollback-now").disabled = reads;
  sayOrHide(by("rollback-fault"), null);
  say(by("rollback-curl"), `curl -X POST -H "Authorization: Bearer $ADMIN_TOKEN" ${place("rollout/rollback")}`);
  by("rollback-dialog").showModal();
  // Enter is enough for who is in a hurry.
  (reads ? by("rollback-cancel") : by("rollback-now")).focus();
}

async function rollBack(event) {
  event.preventDefault();
  by("rollback-now").disabled = true;
  sayOrHide(by("rollback-fault"), null);
  try {
    const reason = by("rollback-reason").value.trim() || ROLLED_BACK;
    const outcome = await ask("POST", "rollout/rollback", { body: { reason }, signal: AbortSignal.timeout(15_000) });
    by("rollback-dialog").close();
    by("rollback-reason").value = "";
    forget();
    say(by("change-outcome"), `Rolled back. ${done(outcome)}`);
    changed(outcome);
  } catch (fault) {
    sayOrHide(by("rollback-fault"), `It is not known to be done. ${inWords(fault)} Try again, or use the shell on the machine itself.`);
  }
  by("rollback-now").disabled = false;
}

function inWords(fault) {
  return fault instanceof Refused ? fault.message : "The server did not answer.";
}

/** 128 random bits. `crypto.randomUUID` is not there where the page came over plain HTTP. */
function random() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
