// Fastify with node-postgres: one INSERT for each request, committed by itself.
const fastify = require("fastify")({ logger: false });
const { Pool } = require("pg");
const { randomUUID } = require("node:crypto");

const pool = new Pool({ connectionString: process.env.BENCH_DATABASE_URL, max: 10 });
const INSERT = { name: "insert", text: "INSERT INTO rows (id, created_at, body) VALUES ($1, $2, $3)" };
const TABLE = "CREATE TABLE IF NOT EXISTS rows (id varchar(32) PRIMARY KEY, created_at timestamptz NOT NULL, body json NOT NULL)";

fastify.post("/rows", async (request) => {
  const id = randomUUID().replaceAll("-", "");
  await pool.query({ ...INSERT, values: [id, new Date(), JSON.stringify(request.body)] });
  return { id };
});

pool.query(TABLE).then(() => fastify.listen({ port: Number(process.env.BENCH_PORT), host: "127.0.0.1" }));
