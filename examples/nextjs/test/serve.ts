// Serves the route handlers, and transactions of each client, for the test in Go.
import { PrismaPg } from '@prisma/adapter-pg'
import { drizzle } from 'drizzle-orm/node-postgres'
import { integer, pgTable, text } from 'drizzle-orm/pg-core'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'

import * as testWebhook from '../app/api/test-webhook/route'
import * as webhooks from '../app/api/webhooks/route'
import { PrismaClient } from '../generated/client.ts'
import { pool } from '../lib/db'
import { WEBHOOK_EVENTS, type WebhookPayloads } from '../lib/webhooks/events'
import { work } from '../lib/webhooks/received'
import { triggerWebhook } from '../lib/webhooks/server'

const event = WEBHOOK_EVENTS.ORG_MEMBER_ADDED
type Data = WebhookPayloads[typeof event]

const prisma = new PrismaClient({ adapter: new PrismaPg({ connectionString: process.env.DATABASE_URL }) })
const orm = drizzle(pool)
const members = pgTable('Member', { id: integer().generatedByDefaultAsIdentity(), organizationId: text().notNull(), email: text().notNull() })

// Each adds a member and reports it, in one transaction.
const clients: Record<string, (organizationId: string, data: Data, fail: () => void) => Promise<void>> = {
  async pg(organizationId, data, fail) {
    const client = await pool.connect()
    try {
      await client.query('BEGIN')
      await client.query('INSERT INTO "Member" ("organizationId", email) VALUES ($1, $2)', [organizationId, data.email])
      await triggerWebhook(client, organizationId, event, data)
      fail()
      await client.query('COMMIT')
    } catch (error) {
      await client.query('ROLLBACK')
      throw error
    } finally {
      client.release()
    }
  },
  async prisma(organizationId, data, fail) {
    await prisma.$transaction(async (tx) => {
      await tx.member.create({ data: { organizationId, email: data.email } })
      await triggerWebhook(tx, organizationId, event, data)
      fail()
    })
  },
  async drizzle(organizationId, data, fail) {
    await orm.transaction(async (tx) => {
      await tx.insert(members).values({ organizationId, email: data.email })
      await triggerWebhook(tx, organizationId, event, data)
      fail()
    })
  },
}

async function trigger(url: URL): Promise<Response> {
  const add = clients[url.searchParams.get('client') ?? '']
  if (!add) return new Response(null, { status: 404 })
  const organizationId = url.searchParams.get('organization') ?? ''
  const data: Data = { organizationId, userId: 'user_1', email: 'ada@example.com', role: 'member', joinedAt: '2026-11-23T12:00:00Z' }
  await add(organizationId, data, () => {
    if (url.searchParams.has('fail')) throw new Error('the application has changed its mind')
  })
  return new Response(null, { status: 204 })
}

async function workOff(): Promise<Response> {
  const done: unknown[] = []
  while (await work(async (webhook) => void done.push(webhook.event === event ? webhook.data.email : webhook.event)));
  return Response.json(done)
}

async function answer(request: Request): Promise<Response> {
  const url = new URL(request.url)
  switch (url.pathname) {
    case '/api/webhooks': return webhooks.POST(request)
    case '/api/test-webhook': return testWebhook.POST(request)
    case '/trigger': return trigger(url)
    case '/work': return workOff()
    default: return new Response(null, { status: 404 })
  }
}

const server = createServer(async (incoming, outgoing) => {
  const chunks: Buffer[] = []
  for await (const chunk of incoming) chunks.push(chunk)
  const headers = new Headers(Object.entries(incoming.headers) as [string, string][])
  const request = new Request(`http://example.com${incoming.url}`, { method: incoming.method, headers, body: chunks.length > 0 ? Buffer.concat(chunks) : undefined })
  const response = await answer(request).catch((error) => new Response(String(error), { status: 500 }))
  outgoing.writeHead(response.status, Object.fromEntries(response.headers))
  outgoing.end(Buffer.from(await response.arrayBuffer()))
})
server.listen(0, '127.0.0.1', () => console.log((server.address() as AddressInfo).port))
