// What must not compile.
import type { NodePgDatabase } from 'drizzle-orm/node-postgres'
import type { Pool } from 'pg'

import type { PrismaClient } from '../generated/client'
import { WEBHOOK_EVENTS, type Webhook } from '../lib/webhooks/events'
import { triggerWebhook, type Transaction } from '../lib/webhooks/server'

export async function wrong(tx: Transaction, webhook: Webhook) {
  // @ts-expect-error a payload of another type
  await triggerWebhook(tx, 'org_1', WEBHOOK_EVENTS.ORG_DELETED, { amount: 1 })
  // @ts-expect-error an unknown type
  await triggerWebhook(tx, 'org_1', 'org.renamed', {})
  // @ts-expect-error not a transaction
  await triggerWebhook({}, 'org_1', WEBHOOK_EVENTS.ORG_DELETED, { organizationId: 'org_1', name: '', deletedBy: '', deletedAt: '' })
  // @ts-expect-error event has to say first which data it is
  return webhook.data.email
}

// What these execute is committed by itself: a rollback of yours would not take the event back.
export async function outside(pool: Pool, prisma: PrismaClient, orm: NodePgDatabase) {
  const deleted = { organizationId: 'org_1', name: '', deletedBy: '', deletedAt: '' }
  // @ts-expect-error a pool is no transaction
  await triggerWebhook(pool, 'org_1', WEBHOOK_EVENTS.ORG_DELETED, deleted)
  // @ts-expect-error Prisma's client is none either
  await triggerWebhook(prisma, 'org_1', WEBHOOK_EVENTS.ORG_DELETED, deleted)
  // @ts-expect-error nor is Drizzle's database
  await triggerWebhook(orm, 'org_1', WEBHOOK_EVENTS.ORG_DELETED, deleted)
}
