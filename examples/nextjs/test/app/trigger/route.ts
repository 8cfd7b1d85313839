// Adds a member and reports it, in one transaction of the client that the test in Go names.
import { PrismaPg } from '@prisma/adapter-pg'
import { drizzle } from 'drizzle-orm/node-postgres'
import { integer, pgTable, text } from 'drizzle-orm/pg-core'

import { PrismaClient } from '@/generated/client'
import { pool, transaction } from '@/lib/db'
import { WEBHOOK_EVENTS, type WebhookPayloads } from '@/lib/webhooks/events'
import { triggerWebhook } from '@/lib/webhooks/server'

const event = WEBHOOK_EVENTS.ORG_MEMBER_ADDED
type Data = WebhookPayloads[typeof event]

const prisma = new PrismaClient({ adapter: new PrismaPg({ connectionString: process.env.DATABASE_URL }) })
const db = drizzle(pool)
const members = pgTable('Member', { id: integer().generatedByDefaultAsIdentity(), organizationId: text().notNull(), email: text().notNull() })

const clients: Record<string, (organizationId: string, data: Data, fail: () => void) => Promise<void>> = {
  pg: (organizationId, data, fail) => transaction(async (client) => {
    await client.query('INSERT INTO "Member" ("organizationId", email) VALUES ($1, $2)', [organizationId, data.email])
    await triggerWebhook(client, organizationId, event, data)
    fail()
  }),
  prisma: (organizationId, data, fail) => prisma.$transaction(async (tx) => {
    await tx.member.create({ data: { organizationId, email: data.email } })
    await triggerWebhook(tx, organizationId, event, data)
    fail()
  }),
  drizzle: (organizationId, data, fail) => db.transaction(async (tx) => {
    await tx.insert(members).values({ organizationId, email: data.email })
    await triggerWebhook(tx, organizationId, event, data)
    fail()
  }),
}

export async function POST(request: Request): Promise<Response> {
  const { searchParams } = new URL(request.url)
  const add = clients[searchParams.get('client') ?? '']
  if (!add) return new Response(null, { status: 404 })
  const organizationId = searchParams.get('organization') ?? ''
  const data: Data = { organizationId, userId: 'user_1', email: 'ada@example.com', role: 'member', joinedAt: '2026-11-23T12:00:00Z' }
  await add(organizationId, data, () => {
    if (searchParams.has('fail')) throw new Error('the application has changed its mind')
  })
  return new Response(null, { status: 204 })
}
