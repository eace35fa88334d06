// Requests, and the stream of events. EventSource cannot send a token, so the stream is read by hand.
import { t } from "./words.js";

const SILENT = 7000; // milliseconds without data after which a stream counts as dead; stats come every 2 s
const LARGEST = 4e6; // characters of one event
let token = "";
try { token = sessionStorage.getItem("token") || ""; } catch { /* the browser stores nothing: the page asks for the token again */ }
let refused = () => {};
let wake = () => {}, current = null, again = false; // how `signIn` restarts the stream

export class Refused extends Error {}

export async function api(path, options = {}) {
  if (/[^ -~]/.test(token)) { // not valid in a header
    refused(true);
    throw new Refused(t("The token is wrong."));
  }
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error(t("harvester web does not answer"));
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  const said = problem.detail || response.statusText || String(response.status);
  if (response.status !== 401) throw Object.assign(new Error(said), { status: response.status, services: problem.services });
  refused(Boolean(token));
  throw new Refused(token ? t("The token is wrong.") : said);
}

export const read = async (path) => (await api(path)).json();
export const post = (path, body) => api(path, { method: "POST", ...(body === undefined ? {}
  : { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } }) });

function parse(part) {
  const fields = {};
  for (const line of part.split("\n")) {
    const colon = line.indexOf(":");
    if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 1).trimStart();
  }
  return fields;
}

// Calls `on.opened()`, `on.event(name, data)` and, after a failure, `on.lost(error)`; runs for ever,
// except after a refused token: then it calls `on.refused(given)`, and `signIn` restarts the stream.
export async function follow(on) {
  refused = on.refused;
  for (let last = ""; ;) {
    const abort = current = new AbortController();
    let timer = setTimeout(() => abort.abort(), 2 * SILENT);
    const heard = () => { clearTimeout(timer); timer = setTimeout(() => abort.abort(), SILENT); };
    try {
      const headers = { Accept: "text/event-stream", ...(last ? { "Last-Event-ID": last } : {}) };
      const response = await api("/api/events", { headers, signal: abort.signal });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      heard();
      on.opened();
      for (let text = ""; ;) {
        const { value, done } = await reader.read();
        if (done) break;
        heard();
        const parts = (text + value).split("\n\n");
        text = parts.pop();
        if (text.length > LARGEST) throw new Error(t("harvester web does not answer"));
        for (const fields of parts.map(parse)) {
          if (fields.id) last = fields.id;
          if (fields.event) on.event(fields.event, JSON.parse(fields.data || "{}"));
        }
      }
      on.lost(new Error(t("harvester web does not answer")));
    } catch (error) {
      if (error instanceof Refused) await new Promise((resolve) => { wake = resolve; });
      else if (!again) on.lost(error.name === "AbortError" ? new Error(t("no data for some seconds")) : error);
    }
    clearTimeout(timer);
    abort.abort();
    if (!again) await new Promise((resolve) => { setTimeout(resolve, 2000); });
    again = false;
  }
}

export function signIn(value) {
  token = value;
  try { sessionStorage.setItem("token", value); } catch { /* as above */ }
  again = true;
  current?.abort();
  wake();
}
