// walhook has a schema of its own, and Drizzle looks only into public.
export default { dialect: 'postgresql', schema: './schema.mjs', out: './out', dbCredentials: { url: process.env.DATABASE_URL } }
