// Sends a test webhook to the endpoints of the organization that is logged in, by walhook's admin server.
import { WEBHOOK_EVENTS } from '../../../lib/webhooks/events'
import { organizationOf } from '../../../lib/session'

export async function POST(request: Request): Promise<Response> {
  const organizationId = await organizationOf()
  if (!organizationId) return Response.json({ error: 'log in first' }, { status: 401 })
  const { event } = (await request.json().catch(() => ({}))) as { event?: unknown }
  if (!Object.values<unknown>(WEBHOOK_EVENTS).includes(event)) return Response.json({ error: 'unknown event type' }, { status: 400 })

  const answer = await fetch(new URL('/api/test-webhook', process.env.WALHOOK_ADMIN_URL ?? 'http://127.0.0.1:8080'), {
    method: 'POST',
    headers: { authorization: `Bearer ${process.env.WALHOOK_ADMIN_TOKEN ?? ''}`, 'content-type': 'application/json' },
    body: JSON.stringify({ event, organizationId }),
    signal: AbortSignal.timeout(5_000),
  }).catch((error: unknown) => new Response(String(error), { status: 503 }))
  // 202: eventId and deliveryIds. 422: error, of what the organization asked for. All else is between walhook and you.
  if (answer.status === 202 || answer.status === 422) return Response.json(await answer.json(), { status: answer.status })
  console.error(`walhook's admin server: ${answer.status} ${await answer.text()}`)
  return Response.json({ error: 'test webhooks cannot be sent now' }, { status: 502 })
}
