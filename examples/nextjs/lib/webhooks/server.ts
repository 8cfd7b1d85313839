// Writes events into walhook's outbox, in your transaction: what you roll back is never sent, what you commit always is.
// If you do not use Drizzle, delete the three lines that are marked with its name.
import { sql, type SQL } from 'drizzle-orm' // Drizzle

import type { WebhookEvent, WebhookPayloads } from './events'

// The transaction of each client, as far as it is needed here. A pool, Prisma's client and Drizzle's database do not fit:
// what they execute is committed by itself.
export type Transaction =
  | { $queryRawUnsafe<T>(query: string, ...values: unknown[]): PromiseLike<T>; $connect?: never } // Prisma's
  | { execute(query: SQL): PromiseLike<unknown>; rollback(): never } // Drizzle
  | { query(query: string, values: unknown[]): PromiseLike<unknown>; totalCount?: never } // pg's; a pool has a totalCount

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
  const insert = `INSERT INTO ${table} (organization_id, event_type, payload) VALUES ($1, $2, $3::jsonb)`
  if ('$queryRawUnsafe' in tx) await tx.$queryRawUnsafe(insert, organizationId, event, payload) // Unsafe is about the text, which has no value in it
  else if ('execute' in tx) await tx.execute(sql`INSERT INTO ${sql.raw(table)} (organization_id, event_type, payload) VALUES (${organizationId}, ${event}, ${payload}::jsonb)`) // Drizzle
  else await tx.query(insert, [organizationId, event, payload])
}
