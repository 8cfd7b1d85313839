// The engine that is in the npm package, as WebAssembly: the native one is downloaded from elsewhere.
import { PrismaPg } from '@prisma/adapter-pg'
import pg from 'pg'

// The adapter does not know PostgreSQL's internal types "char" and name, in which the catalogue is (Prisma's issue 27403). It
// gets char and text, and arrays of them, by the types' OIDs.
const known = { 18: 1042, 19: 25, 1002: 1014, 1003: 1009 }
for (const { prototype } of [pg.Pool, pg.Client]) {
  const query = prototype.query
  prototype.query = function (...args) {
    const answer = query.apply(this, args)
    if (typeof answer?.then !== 'function') return answer
    return answer.then((result) => {
      for (const field of result.fields ?? []) field.dataTypeID = known[field.dataTypeID] ?? field.dataTypeID
      return result
    })
  }
}

export default {
  experimental: { adapter: true },
  engine: 'js',
  schema: 'schema.prisma',
  adapter: async () => new PrismaPg({ connectionString: process.env.DATABASE_URL }),
}
