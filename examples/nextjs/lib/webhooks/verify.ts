import { createHmac, timingSafeEqual } from 'node:crypto'

const tolerance = 300 // seconds: an older request is a replay

// The key of Standard Webhooks: strip whsec_ and decode base64. A secret that is not base64 is its own key.
function key(secret: string): Buffer {
  const text = secret.replace(/^whsec_/, '')
  const base64 = /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/
  return text !== '' && base64.test(text) ? Buffer.from(text, 'base64') : Buffer.from(secret)
}

function equal(a: string, b: string): boolean {
  const [x, y] = [Buffer.from(a), Buffer.from(b)]
  return x.length === y.length && timingSafeEqual(x, y)
}

/** Whether one of the secrets has signed these bytes, a moment ago. body is the raw body: parsing changes it. */
export function verified(headers: Headers, body: Buffer, secrets: string[]): boolean {
  const [id, time] = [headers.get('webhook-id'), headers.get('webhook-timestamp')]
  if (!id || !time || !(Math.abs(Date.now() / 1000 - Number(time)) <= tolerance)) return false
  const given = (headers.get('webhook-signature') ?? '').split(' ')
  return secrets.some((secret) => {
    const want = 'v1,' + createHmac('sha256', key(secret)).update(`${id}.${time}.`).update(body).digest('base64')
    return given.some((signature) => equal(signature, want))
  })
}
