// A receiver without dependencies. From the root of the repository:
//
//   WEBHOOK_SECRETS=whsec_… node examples/receivers/receiver.mjs
import { createHmac, timingSafeEqual } from 'node:crypto'
import { appendFileSync, fsyncSync, openSync, readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { setTimeout } from 'node:timers/promises'

const secrets = (process.env.WEBHOOK_SECRETS ?? '').split(',').filter(Boolean) // during a rotation: the old and the new one
if (secrets.length === 0) {
  console.error('set WEBHOOK_SECRETS to the secret that webhook_create_endpoint returned')
  process.exit(2)
}
const maxBody = 1 << 20 // bytes; walhook sends 256 KiB of payload at most, and little around it

function equal(a, b) {
  const [x, y] = [Buffer.from(a), Buffer.from(b)] // timingSafeEqual throws where the bytes differ in number
  return x.length === y.length && timingSafeEqual(x, y)
}

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

// The table is a file, as Node had no database before node:sqlite: a line when a webhook has arrived, and one when it is done.
// That is for one process and some thousand webhooks a day. Beyond it, use a table of your database, as receiver.go does.
const store = process.env.WEBHOOK_STORE ?? 'webhooks.jsonl'
const file = openSync(store, 'a')
const received = new Map() // from delivery id to body; null once it is done
for (const line of readFileSync(store, 'utf8').split('\n')) {
  try {
    const { delivery, body } = JSON.parse(line)
    received.set(delivery, body)
  } catch {} // a crash cut the line: it was not answered, and walhook sends the webhook again
}

function save(delivery, body) {
  appendFileSync(file, '\n' + JSON.stringify({ delivery, body })) // behind a line that a crash has cut; all of it, or it throws
  fsyncSync(file)
  received.set(delivery, body)
}

async function work(event) {
  await setTimeout(1000 * (process.env.WORK_SECONDS ?? 0)) // yours takes its time here
  console.log(`received ${event.event} of ${event.organizationId}: ${JSON.stringify(event.data)}`)
}

// A crash between work and save does the work twice: give it the delivery's id.
async function workOff() {
  for (;;) {
    for (const [delivery, body] of received) {
      if (body === null) continue
      try {
        await work(JSON.parse(body))
        save(delivery, null)
      } catch (error) {
        console.error(error) // again in the next round
      }
    }
    await setTimeout(200)
  }
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

  const delivery = request.headers['webhook-id'] // the delivery's id, which is signed, unlike X-Webhook-Delivery-ID
  if (!received.has(delivery)) save(delivery, body.toString())
  response.writeHead(204).end()
}

createServer((request, response) => {
  receive(request, response).catch(() => (response.headersSent ? response.destroy() : response.writeHead(500).end()))
}).listen(process.env.PORT || 3000)
workOff()
