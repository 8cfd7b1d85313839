// Webhooks that have arrived, in the table of received.sql.
import { pool, transaction } from '../db'
import type { Webhook } from './events'

/** Stores a webhook. One that came before, with the same delivery id, is not stored again. */
export async function store(deliveryId: string, body: string): Promise<void> {
  await pool.query('INSERT INTO received_webhooks (delivery_id, body) VALUES ($1, $2::jsonb) ON CONFLICT DO NOTHING', [deliveryId, body])
}

/**
 * Works on one webhook that is stored, and returns whether there was one. Call it from a cron route or a worker, as often as it
 * returns true. What fails is tried again by the next call, and no two calls work on the same one.
 */
export function work(handle: (webhook: Webhook) => Promise<void>): Promise<boolean> {
  return transaction(async (client) => {
    const { rows } = await client.query<{ delivery_id: string; body: Webhook }>(
      'SELECT delivery_id, body FROM received_webhooks WHERE done_at IS NULL ORDER BY received_at LIMIT 1 FOR UPDATE SKIP LOCKED',
    )
    const next = rows[0]
    if (!next) return false
    await handle(next.body)
    await client.query('UPDATE received_webhooks SET done_at = now() WHERE delivery_id = $1', [next.delivery_id])
    return true
  })
}
