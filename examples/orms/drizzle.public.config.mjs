// walhook is in public, beside the application's tables.
import config from './drizzle.config.mjs'

export default { ...config, tablesFilter: ['!webhook_*'] }
