// What must not compile.
import { WEBHOOK_EVENTS, type Webhook } from '../lib/webhooks/events'
import { triggerWebhook, type Transaction } from '../lib/webhooks/server'

export async function wrong(tx: Transaction, webhook: Webhook) {
  // @ts-expect-error a payload of another type
  await triggerWebhook(tx, 'org_1', WEBHOOK_EVENTS.ORG_DELETED, { amount: 1 })
  // @ts-expect-error an unknown type
  await triggerWebhook(tx, 'org_1', 'org.renamed', {})
  // @ts-expect-error not a transaction
  await triggerWebhook({}, 'org_1', WEBHOOK_EVENTS.ORG_DELETED, { organizationId: 'org_1', name: '', deletedBy: '', deletedAt: '' })
  // @ts-expect-error event has to say first which data it is
  return webhook.data.email
}
