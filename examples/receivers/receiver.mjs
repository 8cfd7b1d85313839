// A receiver without dependencies. From the root of the repository:
//
//   WEBHOOK_SECRETS=whsec_… node examples/receivers/receiver.mjs
import { createHmac, timingSafeEqual } from 'node:crypto'
import { createServer } from 'node:http'

const secrets = (process.env.WEBHOOK_SECRETS ?? '').split(',').filter(Boolean) // during a rotation: the old and the new one
if (secrets.length === 0) {
  console.error('set WEBHOOK_SECRETS to the secret that webhook_create_endpoint returned')
  process.exit(2)
}
const maxBody = 1 << 20 // bytes; walhook sends 256 KiB of payload at most, and little around it
const seen = new Set() // of delivery ids; in real life a unique key in your database

const equal = (a, b) => a.length === b.length && timingSafeEqual(Buffer.from(a), Buffer.from(b))

// The key of Standard Webhooks: strip whsec_ and decode base64. A secret that is not base64 is its own key.
function key(secret) {
  const text = secret.replace(/^whsec_/, '')
  const base64 = /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/
  return text !== '' && base64.test(text) ? Buffer.from(text, 'base64') : Buffer.from(secret)
}

function verified({ 'webhook-id': id, 'webhook-timestamp': time, 'webhook-signature': given = '' }, body) {
  if (!(Math.abs(Date.now() / 1000 - time) <= 300)) return false // five minutes
  return secrets.some((secret) => {
    const hmac = createHmac('sha256', key(secret)).update(`${id}.${time}.`).update(body)
    const want = 'v1,' + hmac.digest('base64')
    return given.split(' ').some((signature) => equal(signature, want))
  })
}

async function receive(request, response) {
  const chunks = []
  let size = 0
  for await (const chunk of request) {
    size += chunk.length
    if (size > maxBody) return response.writeHead(413, { connection: 'close' }).end()
    chunks.push(chunk)
  }
  const body = Buffer.concat(chunks) // the raw bytes: JSON.parse and JSON.stringify would change them
  if (!verified(request.headers, body)) return response.writeHead(401).end()

  const delivery = request.headers['x-webhook-delivery-id']
  if (!seen.has(delivery)) {
    const event = JSON.parse(body)
    seen.add(delivery)
    console.log(`received ${event.event} of ${event.organizationId}: ${JSON.stringify(event.data)}`)
  }
  response.writeHead(204).end()
}

createServer((request, response) => {
  receive(request, response).catch(() => (response.headersSent ? response.destroy() : response.writeHead(400).end()))
}).listen(process.env.PORT || 3000)
