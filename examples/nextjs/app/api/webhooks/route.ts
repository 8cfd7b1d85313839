// Receives webhooks: verifies, stores, answers. The work is done later, by lib/webhooks/received.ts.
import { store } from '../../../lib/webhooks/received'
import { verified } from '../../../lib/webhooks/verify'

const maxBody = 1 << 20 // bytes; walhook sends 256 KiB of payload at most, and little around it

/** The raw bytes, which request.json() would lose. null: there are more than maxBody, and the rest is not read. */
async function read(request: Request): Promise<Buffer | null> {
  const chunks: Uint8Array[] = []
  const reader = request.body?.getReader()
  for (let size = 0; reader; ) {
    const { done, value } = await reader.read()
    if (done) break
    size += value.length
    if (size > maxBody) return null
    chunks.push(value)
  }
  return Buffer.concat(chunks)
}

export async function POST(request: Request): Promise<Response> {
  const secrets = (process.env.WEBHOOK_SECRETS ?? '').split(',').filter(Boolean) // during a rotation: the old and the new one
  if (secrets.length === 0) throw new Error('set WEBHOOK_SECRETS to the secret that webhook_create_endpoint returned')

  const body = await read(request)
  if (!body) return new Response(null, { status: 413, headers: { connection: 'close' } })
  if (!verified(request.headers, body, secrets)) return new Response(null, { status: 401 })

  await store(request.headers.get('webhook-id')!, body.toString()) // the delivery's id, which is signed, unlike X-Webhook-Delivery-ID
  return new Response(null, { status: 204 })
}
