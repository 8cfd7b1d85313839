// Prisma's commands, as what they ask of its schema engine: node prisma.mjs COMMAND SCHEMA [CONFIG]. The engine is the one in
// the npm package, as WebAssembly: the native one is downloaded from elsewhere.
import { readFile } from 'node:fs/promises'

import { PrismaPg } from '@prisma/adapter-pg'
import { bindMigrationAwareSqlAdapterFactory, ColumnTypeEnum } from '@prisma/driver-adapter-utils'
import * as engine from '@prisma/schema-engine-wasm/schema_engine_bg'

const [command, schema, config] = process.argv.slice(2)

// The adapter knows text, but not PostgreSQL's internal types "char", name and name[], in which the catalogue is (Prisma's issue
// 27403). The engine wants "char" back as a character: it traps on a CHECK constraint, whose type is one, that comes as text.
const [char, text] = [18, 25]
const known = { [char]: text, 19: text, 1003: 1009 }

async function connect(database) {
  const connectionString = String(Object.assign(new URL(process.env.DATABASE_URL), { pathname: database }))
  const adapter = await new PrismaPg({ connectionString }).connect()
  const { performIO, queryRaw } = adapter
  let types
  adapter.performIO = async (query) => {
    const result = await performIO.call(adapter, query)
    types = result.fields.map((field) => field.dataTypeID)
    for (const field of result.fields) field.dataTypeID = known[field.dataTypeID] ?? field.dataTypeID
    return result
  }
  adapter.queryRaw = async (query) => {
    const result = await queryRaw.call(adapter, query)
    types.forEach((type, i) => { if (type === char) result.columnTypes[i] = ColumnTypeEnum.Character })
    return result
  }
  return adapter
}

const database = new URL(process.env.DATABASE_URL).pathname.slice(1)
const factory = {
  provider: 'postgres',
  adapterName: '@prisma/adapter-pg',
  connect: () => connect(database),
  // The adapter's own drops the database before it has left it.
  async connectToShadowDb() {
    const main = await connect(database)
    await main.executeScript(`CREATE DATABASE "${database}_shadow"`)
    const shadow = await connect(`${database}_shadow`)
    const dispose = shadow.dispose.bind(shadow)
    shadow.dispose = async () => {
      await dispose()
      await main.executeScript(`DROP DATABASE "${database}_shadow" WITH (FORCE)`)
      await main.dispose()
    }
    return shadow
  },
}

globalThis.PRISMA_WASM_PANIC_REGISTRY = { set_message: (message) => console.error(message) }
const wasm = await readFile(new URL('./schema_engine_bg.wasm', import.meta.resolve('@prisma/schema-engine-wasm/schema_engine_bg')))
const { instance } = await WebAssembly.instantiate(wasm, { './schema_engine_bg.js': engine })
engine.__wbg_set_wasm(instance.exports)
instance.exports.__wbindgen_start()

const models = await readFile(schema, 'utf8')
const files = [{ path: schema, content: models }]
const external = config ? (await import(config)).default.tables.external : []
const filters = { externalTables: external, externalEnums: [] }
const prisma = await engine.SchemaEngine.new({ datamodels: [[schema, models]] }, () => {}, bindMigrationAwareSqlAdapterFactory(factory))

const diff = async (from) => (await prisma.diff({ from, to: { tag: 'schemaDatamodel', files }, script: true, exitCode: true, filters })).stdout
const migrations = (...scripts) => ({
  baseDir: '.',
  lockfile: { path: 'migration_lock.toml', content: 'provider = "postgresql"' },
  shadowDbInitScript: '',
  migrationDirectories: scripts.map((value, i) => ({ path: String(i), migrationFile: { path: 'migration.sql', content: { tag: 'ok', value } } })),
})

const commands = {
  'db pull': async () => (await prisma.introspect({ schema: { files }, baseDirectoryPath: '.', force: true, compositeTypeDepth: 0, namespaces: null })).schema,
  'db push': () => prisma.schemaPush({ force: false, schema: { files }, filters }),
  'migrate diff': () => diff({ tag: 'schemaDatasource', files, configDir: '.' }),
  // In an application whose first migration has made its tables: reports drift, or adds a table by a second one.
  async 'migrate dev'() {
    const first = await diff({ tag: 'empty' })
    const migrationsList = migrations(first)
    await prisma.markMigrationApplied({ migrationName: '0', migrationsList })
    const { action } = await prisma.devDiagnostic({ migrationsList, filters })
    if (action.tag !== 'createMigration') return action
    const more = [{ path: schema, content: models + 'model more {\n  id Int @id\n}\n' }]
    const { migrationScript } = await prisma.createMigration({ draft: false, migrationName: 'more', migrationsList, schema: { files: more }, filters })
    const both = { migrationsList: migrations(first, migrationScript), filters }
    return { migrationScript, ...await prisma.applyMigrations(both), ...await prisma.devDiagnostic(both) }
  },
  'migrate reset': () => prisma.reset({ filter: filters }),
}
console.log(JSON.stringify(await commands[command]() ?? 'done'))
process.exit() // not a minute later, when the last timer of the engine is over
