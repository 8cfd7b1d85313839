// A receiver as Fabrk documents one: X-Webhook-Signature is all that it verifies. From the root of the repository:
//
//   WEBHOOK_SECRET=… node examples/fabrk/receiver.mjs
//
// It takes what Fabrk sends and what walhook sends. That signature covers no time, so whoever has captured a request can
// send it again for ever. ../receivers/receiver.mjs verifies webhook-signature, which covers the time, and stores what arrives.
import { createHmac, timingSafeEqual } from 'node:crypto'
import { createServer } from 'node:http'

const secret = process.env.WEBHOOK_SECRET
if (!secret) {
  console.error('set WEBHOOK_SECRET to the secret of the webhook')
  process.exit(2)
}
const maxBody = 1 << 20 // bytes; walhook sends 256 KiB of payload at most, and little around it

// timingSafeEqual throws where the lengths differ, so they are compared first: everybody knows how long a signature is.
function verifyWebhook(body, signature = '') {
  const want = createHmac('sha256', secret).update(body).digest('hex')
  return signature.length === want.length && timingSafeEqual(Buffer.from(signature, 'latin1'), Buffer.from(want))
}

const taken = new Set() // yours is a table with a unique key: this one forgets all when the process ends

async function receive(request, response) {
  const chunks = []
  let size = 0
  for await (const chunk of request) {
    size += chunk.length
    if (size > maxBody) return response.writeHead(413, { connection: 'close' }).end()
    chunks.push(chunk)
  }
  const body = Buffer.concat(chunks) // the raw bytes: JSON.parse and JSON.stringify would change them
  if (!verifyWebhook(body, request.headers['x-webhook-signature'])) return response.writeHead(401).end()

  const { 'x-webhook-event': event, 'x-webhook-delivery-id': delivery } = request.headers
  const { id, data, organizationId, timestamp } = JSON.parse(body)
  const key = id ?? delivery // the body's id is signed; Fabrk's own bodies have none
  if (!taken.has(key)) {
    taken.add(key)
    console.log(request.url, event, organizationId, timestamp, JSON.stringify(data))
  }
  response.writeHead(204).end()
}

createServer((request, response) => {
  receive(request, response).catch(() => (response.headersSent ? response.destroy() : response.writeHead(500).end()))
}).listen(process.env.PORT || 3000)
