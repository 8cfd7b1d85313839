// Sends by pg (npm install pg). PGHOST, PGUSER and the like say where to:
//
//   node sender.mjs org_1 4200
import pg from 'pg'

// The client is one connection. pool.query() takes any, and could commit one row without the other.
async function pay(client, organization, amount) {
  await client.query('BEGIN')
  try {
    const { rows: [payment] } = await client.query(
      'INSERT INTO payments (organization_id, amount) VALUES ($1, $2) RETURNING id', [organization, amount])
    const payload = { paymentId: Number(payment.id), amount, currency: 'EUR' } // pg returns a bigint as a string
    await client.query(
      'INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ($1, $2, $3)',
      [organization, 'payment.succeeded', JSON.stringify(payload)]) // a list that is not stringified becomes an array of PostgreSQL
    const { rowCount } = await client.query(
      'UPDATE accounts SET balance = balance - $2 WHERE organization_id = $1 AND balance >= $2', [organization, amount])
    if (rowCount === 0) throw new Error('the account has not enough')
    await client.query('COMMIT')
  } catch (error) {
    await client.query('ROLLBACK') // the event goes with the payment
    throw error
  }
}

const [organization, amount] = process.argv.slice(2)
const client = new pg.Client()
await client.connect()
try {
  await pay(client, organization, Number(amount))
} finally {
  await client.end()
}
