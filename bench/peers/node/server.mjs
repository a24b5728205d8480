// grammY's webhookCallback on node:http, as its guide shows it. Usage: node server.mjs PORT
// PATH, SECRET and TOKEN come from the environment (HOOK_*), so that they are written down once, in job.py.
import { appendFileSync } from "node:fs";
import { createServer } from "node:http";
import { Bot, webhookCallback } from "grammy";

const { HOOK_PATH, HOOK_SECRET, HOOK_TOKEN, BENCH_WITNESS } = process.env;
const SEEN_SIZE = 10_000;

// botInfo given: grammY would call getMe for it.
const botInfo = { id: 42, is_bot: true, first_name: "Bench", username: "bench_bot" };
const bot = new Bot(HOOK_TOKEN, { botInfo });
const seen = new Map(); // keeps insertion order

bot.use(async (ctx, next) => {
  const id = ctx.update.update_id;
  if (seen.has(id)) return;
  seen.set(id, true);
  if (seen.size > SEEN_SIZE) seen.delete(seen.keys().next().value);
  await next();
});
bot.on("message", async (ctx) => {
  if (BENCH_WITNESS) appendFileSync(BENCH_WITNESS, `${ctx.update.update_id}\n`);
});

const handle = webhookCallback(bot, "http", { secretToken: HOOK_SECRET });
createServer((request, response) => {
  if (request.method === "POST" && request.url === HOOK_PATH) return handle(request, response);
  response.writeHead(404).end();
}).listen(Number(process.argv[2]), "127.0.0.1");
