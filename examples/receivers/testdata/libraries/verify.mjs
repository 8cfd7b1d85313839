// Verifies what comes on stdin, {secret, headers, body}, by the official library for JavaScript. Exits 1 where it refuses.
import { readFileSync } from 'node:fs'
import { Webhook } from 'standardwebhooks'

const { secret, headers, body } = JSON.parse(readFileSync(0, 'utf8'))
try {
  new Webhook(secret).verify(body, headers)
} catch (error) {
  console.error(error.message)
  process.exit(1)
}
