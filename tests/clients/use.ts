// Uses the API through types that openapi-typescript has generated from its document (api.d.ts).
// Takes ids of a waiting, a stored and a failed task; prints what it saw, as JSON.
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

type Saw = { state: components["schemas"]["State"]; bytes: number[]; reason: string; finished: boolean };

const [baseUrl = "", token = "", ...ids] = process.argv.slice(2);
const api = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${token}` } });

async function look(task_id: string): Promise<Saw> {
  const { data, error } = await api.GET("/api/tasks/{task_id}", { params: { path: { task_id } } });
  if (!data) throw new Error(error?.detail);
  return {
    state: data.state,
    bytes: (data.files ?? []).flatMap((file) => (file.bytes === undefined ? [] : [file.bytes])),
    reason: data.reason,
    finished: data.finished_at !== undefined,
  };
}

const tasks: Saw[] = [];
for (const id of ids) tasks.push(await look(id));

const filters = { state: ["failed" as const], label: ["clients"] };
const listed = await api.GET("/api/tasks", { params: { query: { ...filters, limit: 5 } } });
const dry = await api.POST("/api/bulk/retry", { params: { query: { ...filters, dry_run: true } } });
const named = await api.POST("/api/bulk/retry", {
  params: { query: { dry_run: true } },
  body: { task_ids: ids },
});
const unknown = await api.GET("/api/tasks/{task_id}", { params: { path: { task_id: "nobody" } } });
const again = await api.POST("/api/tasks", { body: { task_ids: ids, label: "clients" } });

console.log(JSON.stringify({
  tasks,
  listed: listed.data?.tasks.map((task) => task.task_id),
  dry: dry.data?.done,
  not_done: named.data?.not_done,
  unknown: unknown.error?.status,
  again: again.data?.tasks.map((task) => task.new),
}));
