// Talks to the admin API of the server that this page is from, and to nobody else.

const BASE = new URL("admin/", document.baseURI);

/** In no storage: a script of the same origin, as of an upstream behind the same listener, could read it there. */
let kept = null;

/** The token, which a reload of the page forgets. */
export const token = {
  get: () => kept,
  set: (value) => {
    kept = value;
  },
  clear: () => {
    kept = null;
  },
};

/** What the server answered instead of doing it. */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem?.detail ?? `The server answered ${status}.`);
    this.status = status;
    this.code = problem?.code;
  }
}

/** Where a path of the admin API is, for people. */
export const place = (path) => new URL(path, BASE).href;

/** Asks, and answers with what JSON came back. */
export async function ask(method, path, { body, headers = {}, signal } = {}) {
  const answer = await send(method, path, { body, headers, signal });
  const value = await answer.json().catch(() => null);
  if (!answer.ok) throw new Refused(answer.status, value);
  return value;
}

/** The events of the server, each `{name, data}`, until it ends them or `signal` does. */
export async function* events(signal) {
  const answer = await send("GET", "events", { signal });
  if (!answer.ok) throw new Refused(answer.status, await answer.json().catch(() => null));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) yield event(part);
  }
}

function event(text) {
  const all = { name: "message", data: "" };
  for (const line of text.split("\n")) {
    if (line.startsWith("event: ")) all.name = line.slice(7);
    if (line.startsWith("data: ")) all.data += line.slice(6);
  }
  return all;
}

function send(method, path, { body, headers = {}, signal } = {}) {
  const all = { Authorization: `Bearer ${token.get()}`, ...headers };
  if (body !== undefined) all["Content-Type"] = "application/json";
  return fetch(new URL(path, BASE), {
    method,
    headers: all,
    body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store",
    credentials: "omit",
    redirect: "error",
    signal,
  });
}
