import { Pool, type PoolClient } from 'pg'

export const pool = new Pool({ connectionString: process.env.DATABASE_URL })

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
