// Works on what has arrived, and says what it was.
import { WEBHOOK_EVENTS } from '@/lib/webhooks/events'
import { work } from '@/lib/webhooks/received'

export async function POST(): Promise<Response> {
  const done: string[] = []
  while (await work(async (webhook, client) => {
    if (webhook.event === WEBHOOK_EVENTS.PAYMENT_FAILED) await client.query('SELECT 1/0')
    done.push(webhook.event === WEBHOOK_EVENTS.ORG_MEMBER_ADDED ? webhook.data.email : webhook.event)
  }));
  return Response.json(done)
}
