import { pgTable, serial, text } from 'drizzle-orm/pg-core'

export const account = pgTable('account', { id: serial().primaryKey(), name: text().notNull() })
