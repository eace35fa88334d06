// Words, numbers and times in the browser's language: Chinese or English.
const wanted = (navigator.languages || []).find((tag) => /^(zh|en)\b/i.test(tag)) || "en";
export const lang = /^zh/i.test(wanted) ? "zh" : "en";

// Without a prototype: untrusted names are looked up in tables.
export const table = (entries) => Object.assign(Object.create(null), entries);

const ZH = table({
  // states and reasons
  "waiting": "等待中", "copying": "复制中", "stored": "已存储", "partial": "部分存储", "failed": "失败",
  "failed upstream": "上游执行失败", "canceled upstream": "在上游被取消", "content refused": "内容审核未通过",
  "unknown to the upstream": "上游不认识该任务", "unusable upstream answers": "上游的答复无法使用",
  "deadline passed": "超过期限", "canceled": "已取消", "files are gone": "文件已无法取得",
  "files break a rule": "文件违反规则", "bucket refuses the object": "存储桶拒绝该对象",
  "crashed its workers": "多次使 worker 崩溃", "no reason": "无原因",
  // frame
  "Skip to content": "跳到内容", "Views": "视图", "Overview": "总览", "Tasks": "任务", "Task id": "任务 ID", "Open": "打开",
  "connecting": "连接中", "live": "实时", "signed out": "未登录", "loading": "加载中",
  "Sign in": "登录", "Token": "令牌", "The token is the value of HARVESTER_WEB_TOKEN.": "令牌是 HARVESTER_WEB_TOKEN 的值。",
  "The token is wrong.": "令牌不正确。", "Close": "关闭", "Dismiss": "关闭此消息", "No, go back": "不，返回", "now": "现在", "just now": "刚刚",
  // incidents
  "What to do": "处理办法", "Meanwhile": "在此期间", "began": "始于", "The figures below are from": "下方数字的时间：",
  "No worker is alive": "没有存活的 worker", "Start one: harvester worker": "启动一个：harvester worker",
  "Nothing is lost. Tasks are accepted and wait.": "不会丢失任何内容。任务照常接收并等待。",
  "The upstream refuses the app key": "上游拒绝应用密钥",
  "Correct SPEEDPIX_APP_KEY or SPEEDPIX_APP_SECRET, then restart the workers.": "更正 SPEEDPIX_APP_KEY 或 SPEEDPIX_APP_SECRET，然后重启 worker。",
  "The upstream refuses the workers' clocks": "上游认为 worker 的时钟不准",
  "The upstream refuses the account": "上游拒绝该账户",
  "The upstream refuses every request": "上游拒绝所有请求",
  "The store refuses the workers": "对象存储拒绝 worker", "No call to the {name} can succeed": "对 {name} 的调用都无法成功",
  "The upstream does not answer": "上游没有应答", "Check SPEEDPIX_ENDPOINT and the network; the fleet recovers by itself.": "检查 SPEEDPIX_ENDPOINT 和网络；集群会自行恢复。",
  "The store does not answer": "对象存储没有应答", "Check AWS_ENDPOINT_URL_S3, the network and the store's own log.": "检查 AWS_ENDPOINT_URL_S3、网络以及对象存储自身的日志。",
  "Redis refuses writes": "Redis 拒绝写入", "Start it, make room in it, or correct REDIS_URL.": "启动 Redis、为其腾出空间，或更正 REDIS_URL。",
  "The broker does not answer": "消息代理没有应答", "Start it, or correct CELERY_BROKER_URL.": "启动它，或更正 CELERY_BROKER_URL。",
  "No webhook gets through": "没有 webhook 能送达",
  "Everything else continues. Each webhook is retried for three days.": "其他一切照常。每个 webhook 会重试三天。",
  "The clock of Redis has stepped": "Redis 的时钟发生跳变", "Set its machine's clock (NTP).": "校准其所在机器的时钟（NTP）。",
  "Redis is out of reach": "无法连接 Redis", "No connection to the fleet": "与集群的连接已断开",
  "Check that harvester web runs and can be reached from here.": "检查 harvester web 是否在运行、能否从此处访问。",
  "The workers do not need this page and continue.": "worker 不依赖此页面，会继续工作。",
  "harvester web does not answer": "harvester web 没有应答", "no data for some seconds": "已有数秒没有收到数据",
  // what the server says of services that are out of reach, see core/services.py
  "Let NTP set the machines' clocks; signatures hold for 15 minutes.": "用 NTP 校准各机器的时钟；签名有效期为 15 分钟。",
  "Settle it with the vendor: balance, quota, or a barred account.": "请与服务商处理：余额、额度或账户被封禁。",
  "Correct SPEEDPIX_ENDPOINT.": "更正 SPEEDPIX_ENDPOINT。",
  "Correct what the message names, and restart the workers if it is a setting; harvester doctor checks each step.": "更正消息所指的问题，如果是设置，还要重启 worker；harvester doctor 会逐步检查。",
  "Ask the owners of the hosts; harvester stats names them.": "请联系这些主机的负责人；harvester stats 会列出它们。",
  "Ids are accepted, and files are copied while their addresses work. Waiting tasks keep waiting; none ends because of this.": "照常接收 ID；文件在地址有效期内继续复制。等待中的任务继续等待，不会有任务因此结束。",
  "Ids are accepted, and tasks accepted before are polled. Files wait, and expired addresses are renewed afterwards; no task ends because of this.": "照常接收 ID，并继续查询已接收的任务。文件等待写入，过期的地址之后会更新；不会有任务因此结束。",
  "No id is accepted and no work begins. No task ends; workers resume by themselves.": "不接收 ID，也不开始新的工作。不会有任务结束；worker 会自行恢复。",
  "Polling, copying and webhooks continue, and ids are accepted over HTTP, the stream and the command line. Celery messages and replies wait.": "查询、复制和 webhook 照常进行，可通过 HTTP、流和命令行提交 ID。Celery 消息和回复等待处理。",
  // figures
  "Tasks by state": "各状态任务数", "Endings": "结束的任务", "Time span": "时间范围", "last 5 minutes": "最近 5 分钟", "last hour": "最近 1 小时",
  "last 24 hours": "最近 24 小时", "last 7 days": "最近 7 天", "at most {most} in one bar": "单柱最多 {most}", "no task ended": "没有任务结束",
  "Workers": "Worker", "Process": "进程", "Last tick": "上次心跳", "silent; last seen": "无心跳，上次：",
  "{alive} alive, {silent} silent": "{alive} 个存活，{silent} 个无心跳", "no worker has ticked within the last hour": "最近一小时内没有 worker 心跳", "{rate} upstream calls a second": "每秒 {rate} 次上游调用",
  "throttled to {percent} %": "已限流至 {percent} %", "Due for": "等待处理", "Late": "延迟", "no": "无",
  "polling the upstream": "查询上游", "fetching files": "取文件", "callbacks": "回调",
  "What failed": "失败情况", "Of the newest {count}:": "最近 {count} 个之中：", "Nothing has failed.": "没有失败的任务。", "Latest failures": "最近的失败",
  // list
  "Task": "任务", "State": "状态", "Why": "原因", "When": "时间", "Actions": "操作", "Label": "标签", "Files": "文件", "Reason": "原因", "Since": "时间",
  "Show as": "显示方式", "rows": "列表", "pictures": "图片", "Show": "显示", "Clear": "清除", "More": "更多", "any": "任意", "any time": "不限", "or": "或",
  "Error contains": "错误包含", "one kind of error": "同类错误",
  "Retry all": "全部重试", "Retry {n} task?": "重试 {n} 个任务？", "Retry {n} tasks?": "重试 {n} 个任务？", "Cancel all": "全部取消",
  "Each starts again as a new run and keeps the files it has. Tasks that fail from now on are not affected.": "每个任务重新运行一次，并保留已有文件。此后失败的任务不受影响。",
  "{n} task queued for retry": "{n} 个任务已排队重试", "{n} tasks queued for retry": "{n} 个任务已排队重试",
  "Cancel {n} task?": "取消 {n} 个任务？", "Cancel {n} tasks?": "取消 {n} 个任务？",
  "They end as failed, with the reason canceled. Files that are stored by then stay.": "它们将以“失败”结束，原因为 canceled。届时已存储的文件会保留。",
  "cancellation of {n} task requested": "已请求取消 {n} 个任务", "cancellation of {n} tasks requested": "已请求取消 {n} 个任务",
  "nothing to do": "没有可处理的任务", "There are more, which are included.": "还有更多，也包括在内。", "{n} could not be": "{n} 个未能处理",
  "Newest tasks": "最新任务", "All tasks": "所有任务", "No task yet. Submit one:": "还没有任务。提交一个：", "No task matches this filter.": "没有符合条件的任务。",
  "No task among those checked matches this filter.": "已查看的任务中没有符合条件的。", "{stored} of {all}": "{stored} / {all}",
  "Only the newest {n} are shown; a filter finds others.": "仅显示最新的 {n} 个；可用筛选查找其他任务。",
  "{n} change since": "此后有 {n} 处变化", "{n} changes since": "此后有 {n} 处变化", "Show the newest": "显示最新", "cannot be shown": "无法显示", "could not be loaded from {host}": "无法从 {host} 加载", ", or cannot be played here": "，或无法在此播放",
  // task
  "Retry": "重试", "queued for retry": "已排队重试", "Cancel": "取消任务", "cancellation requested": "已请求取消", "Send callbacks again": "重新发送回调",
  "callbacks queued": "回调已排队", "Poll now": "立即查询", "polled as soon as possible": "将尽快查询", "Cancel this task?": "取消此任务？", "Cancel the task": "取消任务",
  "{id} ends as failed, with the reason canceled. Files that are stored by then stay.": "{id} 将以“失败”结束，原因为 canceled。届时已存储的文件会保留。",
  "Error": "错误", "Run": "运行次数", "Restored": "已恢复", "from its manifest": "来自清单", "Record": "记录", "Timeline": "时间线",
  "{n} file lost": "{n} 个文件丢失", "{n} files lost": "{n} 个文件丢失", "and {n} more; the record has them all": "另有 {n} 个；记录中有全部内容",
  "Show {n} more": "再显示 {n} 个", "cut here; the API has all of it": "此处截断；API 中有全部内容",
  "There is no task with this id. Records are removed some time after their end; submit the id again.": "没有此 ID 的任务。记录在结束一段时间后会被删除；可重新提交该 ID。",
  "submitted": "已提交", "began upstream": "上游开始", "ended upstream": "上游结束", "held up": "暂时无法继续",
  "{n} file in the bucket": "{n} 个文件已入桶", "{n} files in the bucket": "{n} 个文件已入桶",
  "polled {n} time so far": "已查询 {n} 次", "polled {n} times so far": "已查询 {n} 次",
  "gave up the {channel} {target}": "放弃 {channel} {target}", "sent the {channel} {target}": "已发送 {channel} {target}", "could not send the {channel} {target}": "无法发送 {channel} {target}",
});

export const REASONS = table({
  upstream_failed: "failed upstream", upstream_canceled: "canceled upstream", content_rejected: "content refused",
  unknown_task: "unknown to the upstream", upstream_error: "unusable upstream answers", deadline_exceeded: "deadline passed",
  canceled: "canceled", files_unavailable: "files are gone", files_rejected: "files break a rule",
  storage_error: "bucket refuses the object", poisoned: "crashed its workers",
});

export function t(text, values = {}) {
  const words = lang === "zh" ? ZH[text] ?? text : text;
  return words.replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all);
}

export const reason = (code) => code ? t(REASONS[code] ?? code) : t("no reason");
export const number = (value) => Number(value).toLocaleString(wanted);
export const count = (n, one, many) => t(n === 1 ? one : many, { n: number(n) });

// Translates every node with an attribute that asks for it.
export function translate(root) {
  document.documentElement.lang = lang === "zh" ? "zh-CN" : "en";
  for (const node of root.querySelectorAll("[data-t]")) node.textContent = t(node.textContent);
  for (const node of root.querySelectorAll("[data-label]")) node.setAttribute("aria-label", t(node.dataset.label));
  for (const node of root.querySelectorAll("[data-hint]")) node.placeholder = t(node.dataset.hint);
}

// The clock of Redis, which gives every time in a record; the browser's own may be wrong.
let offset = 0;
export const clock = { now: () => Date.now() + offset, set: (now) => { offset = now - Date.now(); } };

const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
const relative = new Intl.RelativeTimeFormat(wanted, { numeric: "always", style: "short" });
export function ago(ms) {
  const seconds = (ms - clock.now()) / 1000;
  if (Math.abs(seconds) < 2) return t("just now");
  const [unit, size] = UNITS.find(([, length]) => Math.abs(seconds) >= length) || UNITS[3];
  return relative.format(Math.trunc(seconds / size), unit);
}

export const exact = (ms, short = false) => new Date(ms).toLocaleString(wanted, short ? { dateStyle: "short", timeStyle: "short" } : {});

export function span(seconds) {
  const [unit, size] = UNITS.find(([, length]) => seconds >= 2 * length) || UNITS[3];
  return Math.round(seconds / size).toLocaleString(wanted, { style: "unit", unit, unitDisplay: "short" });
}

export function bytes(size) {
  if (!(size >= 0)) return "";
  const power = Math.min(4, Math.floor(Math.log(Math.max(1, size)) / Math.log(1024)));
  return `${(size / 1024 ** power).toLocaleString(wanted, { maximumFractionDigits: 1 })} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
}
