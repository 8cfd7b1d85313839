import { Pool, type PoolClient } from 'pg'

function newPool(): Pool {
  const pool = new Pool({ connectionString: process.env.DATABASE_URL })
  pool.on('error', (error) => console.error(`PostgreSQL: ${error.message}`)) // of idle connections: without this it ends the process
  return pool
}

// One pool, however often next dev loads this file again.
const kept = globalThis as { applicationPool?: Pool }
export const pool = (kept.applicationPool ??= newPool())

/** What run does with the client is committed if it returns, and rolled back if it throws. */
export async function transaction<T>(run: (client: PoolClient) => Promise<T>): Promise<T> {
  const client = await pool.connect()
  try {
    await client.query('BEGIN')
    const result = await run(client)
    await client.query('COMMIT')
    return result
  } catch (error) {
    await client.query('ROLLBACK').catch(() => {}) // a connection that broke has rolled back
    throw error
  } finally {
    client.release()
  }
}
