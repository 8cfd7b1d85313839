// walhook is in public, beside the application's tables.
export default {
  experimental: { externalTables: true },
  tables: {
    external: [
      'public.webhook_audit',
      'public.webhook_deliveries',
      'public.webhook_endpoint_failures',
      'public.webhook_endpoints',
      'public.webhook_event_types',
      'public.webhook_forgetting',
      'public.webhook_outbox',
      'public.webhook_retries',
      'public.webhook_secrets',
      'public.webhook_state',
    ],
  },
}
