// Webhooks that have arrived, in the table of received.sql.
import type { PoolClient } from 'pg'

import { pool, transaction } from '../db'
import type { Webhook } from './events'

/** Stores a webhook. One that came before, with the same delivery id, is not stored again. */
export async function store(deliveryId: string, body: string): Promise<void> {
  await pool.query('INSERT INTO received_webhooks (delivery_id, body) VALUES ($1, $2::jsonb) ON CONFLICT DO NOTHING', [deliveryId, body])
}

/**
 * Works on one webhook that is due, and returns whether there was one. Call it from a cron route or a worker, as often as it
 * returns true. No two calls work on the same one. What handle writes by client is committed together with that it is done.
 * If it throws, that is rolled back and tried again in a minute; meanwhile the others.
 */
export function work(handle: (webhook: Webhook, client: PoolClient) => Promise<void>): Promise<boolean> {
  return transaction(async (client) => {
    const { rows } = await client.query<{ delivery_id: string; body: Webhook }>(
      'SELECT delivery_id, body FROM received_webhooks WHERE work_at <= now() ORDER BY work_at LIMIT 1 FOR UPDATE SKIP LOCKED',
    )
    const next = rows[0]
    if (!next) return false
    let wait: string | null = null
    await client.query('SAVEPOINT work')
    try {
      await handle(next.body, client)
    } catch (error) {
      console.error(error)
      await client.query('ROLLBACK TO work')
      wait = '1 minute'
    }
    await client.query('UPDATE received_webhooks SET work_at = now() + $2::interval WHERE delivery_id = $1', [next.delivery_id, wait])
    return true
  })
}
