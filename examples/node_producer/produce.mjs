// Hand in task ids over HTTP and wait for their ends. Needs Node 18 or newer and no package.
//
//   API_URL=http://127.0.0.1:8080 HARVESTER_WEB_TOKEN=… node produce.mjs ID…
//
// Prints one JSON line for each end. Exit code 0: every task is stored.

const base = process.env.API_URL ?? "http://127.0.0.1:8080";
const token = process.env.HARVESTER_WEB_TOKEN; // not needed on loopback
const authorization = token ? { authorization: `Bearer ${token}` } : {};

/** One call of the API; its JSON. Throws with the problem's own words. */
async function call(path, options = {}) {
  const response = await fetch(new URL(path, base), {
    ...options,
    headers: { ...authorization, ...options.headers },
    signal: AbortSignal.timeout(90_000),
  });
  const document = await response.json();
  if (!response.ok) {
    throw new Error(`${response.status} ${document.title}: ${document.detail ?? ""}`);
  }
  return document;
}

/** The record once it is final. Each call waits for that up to a minute. */
async function ending(id) {
  for (;;) {
    const record = await call(`/api/tasks/${encodeURIComponent(id)}?wait=60`);
    if (["stored", "partial", "failed"].includes(record.state)) {
      return record;
    }
  }
}

const ids = process.argv.slice(2);
const { tasks, refused } = await call("/api/tasks", {
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify({ task_ids: ids, label: "shop", metadata: { from: "node_producer" } }),
});
for (const { value, reason } of refused) {
  console.error(`refused: ${value}: ${reason}`);
  process.exitCode = 1;
}
await Promise.all(
  tasks.map(async ({ task_id }) => {
    const { state, reason, files = [] } = await ending(task_id);
    const uris = files.filter((file) => file.uri).map((file) => file.uri);
    console.log(JSON.stringify({ task_id, state, reason, files: uris }));
    if (state !== "stored") {
      process.exitCode = 1;
    }
  }),
);
