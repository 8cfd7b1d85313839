// Writes events into walhook's outbox, in your transaction: what you roll back is never sent, what you commit always is.
import { sql, type SQL } from 'drizzle-orm' // leave Drizzle's lines out if you do not use it

import type { WebhookEvent, WebhookPayloads } from './events'

// The transaction of each client, as far as it is needed here. A pool, Prisma's client and Drizzle's database do not fit:
// what they execute is committed by itself.
type Drizzle = { execute(query: SQL): PromiseLike<unknown>; rollback(): never }
type Prisma = { $queryRawUnsafe<T>(query: string, ...values: unknown[]): PromiseLike<T>; $connect?: never }
type Pg = { query(query: string, values: unknown[]): PromiseLike<unknown>; totalCount?: never } // which a pool has
export type Transaction = Drizzle | Prisma | Pg

// WALHOOK_SCHEMA of your walhook. Named here, because clients have a search_path of their own.
const table = 'webhooks.webhook_outbox'

/**
 * Sends an event to the organization's endpoints once tx is committed. Call it beside the change that it reports, with the
 * same tx: a client of pg between BEGIN and COMMIT, or the tx of prisma.$transaction or db.transaction.
 */
export async function triggerWebhook<E extends WebhookEvent>(
  tx: Transaction,
  organizationId: string,
  event: E,
  data: WebhookPayloads[E],
): Promise<void> {
  const payload = JSON.stringify(data)
  if ('execute' in tx) {
    await tx.execute(sql`INSERT INTO ${sql.raw(table)} (organization_id, event_type, payload) VALUES (${organizationId}, ${event}, ${payload}::jsonb)`)
    return
  }
  const insert = `INSERT INTO ${table} (organization_id, event_type, payload) VALUES ($1, $2, $3::jsonb)`
  if ('$queryRawUnsafe' in tx) {
    await tx.$queryRawUnsafe(insert, organizationId, event, payload) // Unsafe is about the text, which has no value in it
    return
  }
  await tx.query(insert, [organizationId, event, payload])
}
