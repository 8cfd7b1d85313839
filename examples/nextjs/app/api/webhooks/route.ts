// Receives webhooks: verifies, stores, answers. The work is done later, by lib/webhooks/received.ts.
import { store } from '../../../lib/webhooks/received'
import { verified } from '../../../lib/webhooks/verify'

const maxBody = 1 << 20 // bytes; walhook sends 256 KiB of payload at most, and little around it

export async function POST(request: Request): Promise<Response> {
  const secrets = (process.env.WEBHOOK_SECRETS ?? '').split(',').filter(Boolean) // during a rotation: the old and the new one
  if (secrets.length === 0) throw new Error('set WEBHOOK_SECRETS to the secret that webhook_create_endpoint returned')

  if (Number(request.headers.get('content-length')) > maxBody) return new Response(null, { status: 413 })
  const body = Buffer.from(await request.arrayBuffer()) // the raw bytes: request.json() would lose them
  if (body.length > maxBody) return new Response(null, { status: 413 })
  if (!verified(request.headers, body, secrets)) return new Response(null, { status: 401 })

  await store(request.headers.get('webhook-id')!, body.toString()) // the delivery's id, which is signed, unlike X-Webhook-Delivery-ID
  return new Response(null, { status: 204 })
}
