// Orders a sound with types made from the OpenAPI document, waits for it, downloads it and verifies its webhook.
import { createHash } from "node:crypto";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import createClient from "openapi-fetch";
import { Webhook } from "standardwebhooks";
import type { components, paths } from "./soundpost.js";

const [baseUrl, key] = process.argv.slice(2) as [string, string];
const soundpost = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${key}` } });

type Delivery = { headers: Record<string, string>; body: string };
const receiver = createServer();
const delivered = new Promise<Delivery>((resolve) =>
  receiver.on("request", async (request, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk);
    response.writeHead(204).end();
    resolve({ headers: request.headers as Record<string, string>, body: Buffer.concat(chunks).toString() });
  }),
);
await new Promise<void>((resolve) => receiver.listen(0, "127.0.0.1", resolve));
const webhook_url = `http://127.0.0.1:${(receiver.address() as AddressInfo).port}`;

const least: components["schemas"]["TaskCreate"] = { prompt: "soft rain" };
const ordered = await soundpost.POST("/v1/tasks", {
  params: { header: { "Idempotency-Key": "order-1" } },
  body: { ...least, webhook_url },
});
if (!ordered.data) throw new Error(JSON.stringify(ordered.error));

const waited = await soundpost.GET("/v1/tasks/{task_id}", {
  params: { path: { task_id: ordered.data.id }, header: { Prefer: "wait=60" } },
});
const clip = waited.data?.clips[0];
if (!clip?.audio_url) throw new Error(JSON.stringify(waited));

const path = { task_id: ordered.data.id, index: clip.index };
const audio = await soundpost.GET("/v1/tasks/{task_id}/clips/{index}/audio", { params: { path }, parseAs: "arrayBuffer" });
if (!audio.data) throw new Error(JSON.stringify(audio.error));
const file: Buffer = Buffer.from(audio.data);

const archived = await soundpost.GET("/v1/tasks/{task_id}", { params: { path: { task_id: ordered.data.id } } });
const secret = await soundpost.GET("/v1/webhook-secret");
const { headers, body } = await delivered;
const event = new Webhook(secret.data?.secret ?? "").verify(body, headers) as components["schemas"]["TaskWebhook"];
receiver.close();

console.log(
  JSON.stringify({
    status: waited.data?.status,
    magic: file.subarray(0, 4).toString(),
    is_whole: createHash("sha256").update(file).digest("hex") === archived.data?.clips[0]?.sha256,
    event: event.type,
    is_same_task: event.data.task.id === ordered.data.id,
  }),
);
