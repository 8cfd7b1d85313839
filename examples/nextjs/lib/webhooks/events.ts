// The event types of walhook, and their payloads as the examples in webhook_event_types have them. Add the types of your own.

export const WEBHOOK_EVENTS = {
  ORG_CREATED: 'org.created',
  ORG_DELETED: 'org.deleted',
  ORG_MEMBER_ADDED: 'org.member.added',
  ORG_MEMBER_INVITED: 'org.member.invited',
  ORG_MEMBER_REMOVED: 'org.member.removed',
  ORG_MEMBER_ROLE_CHANGED: 'org.member.role_changed',
  ORG_UPDATED: 'org.updated',
  PAYMENT_FAILED: 'payment.failed',
  PAYMENT_REFUNDED: 'payment.refunded',
  PAYMENT_SUCCEEDED: 'payment.succeeded',
  SUBSCRIPTION_CANCELLED: 'subscription.cancelled',
  SUBSCRIPTION_CREATED: 'subscription.created',
  SUBSCRIPTION_EXPIRED: 'subscription.expired',
  SUBSCRIPTION_RENEWED: 'subscription.renewed',
  SUBSCRIPTION_UPDATED: 'subscription.updated',
  API_KEY_CREATED: 'api_key.created',
  API_KEY_REVOKED: 'api_key.revoked',
  API_KEY_ROTATED: 'api_key.rotated',
  SECURITY_2FA_DISABLED: 'security.2fa_disabled',
  SECURITY_2FA_ENABLED: 'security.2fa_enabled',
  SECURITY_LOGIN_FAILED: 'security.login_failed',
  SECURITY_PASSWORD_CHANGED: 'security.password_changed',
} as const

export type WebhookEvent = (typeof WEBHOOK_EVENTS)[keyof typeof WEBHOOK_EVENTS]

export interface WebhookPayloads {
  /** An organization was created */
  'org.created': {
    name: string
    slug: string
    ownerId: string
    createdAt: string
    organizationId: string
  }
  /** An organization was deleted */
  'org.deleted': {
    name: string
    deletedAt: string
    deletedBy: string
    organizationId: string
  }
  /** Somebody joined an organization */
  'org.member.added': {
    role: string
    email: string
    userId: string
    joinedAt: string
    organizationId: string
  }
  /** Somebody was invited to an organization */
  'org.member.invited': {
    role: string
    email: string
    expiresAt: string
    invitedBy: string
    invitationId: string
    organizationId: string
  }
  /** Somebody left or was removed from an organization */
  'org.member.removed': {
    email: string
    userId: string
    removedAt: string
    removedBy: string
    organizationId: string
  }
  /** A member of an organization got another role */
  'org.member.role_changed': {
    role: string
    email: string
    userId: string
    changedBy: string
    previousRole: string
    organizationId: string
  }
  /** An organization was changed */
  'org.updated': {
    name: string
    slug: string
    changes: {
      name: {
        to: string
        from: string
      }
    }
    updatedAt: string
    organizationId: string
  }
  /** A payment was declined or failed */
  'payment.failed': {
    amount: number
    method: string
    currency: string
    failedAt: string
    invoiceId: string
    paymentId: string
    customerId: string
    failureCode: string
    failureMessage: string
  }
  /** A payment was paid back */
  'payment.refunded': {
    amount: number
    reason: string
    currency: string
    refundId: string
    paymentId: string
    customerId: string
    refundedAt: string
    amountRefunded: number
  }
  /** A payment went through */
  'payment.succeeded': {
    amount: number
    method: string
    paidAt: string
    currency: string
    invoiceId: string
    paymentId: string
    customerId: string
  }
  /** A subscription was cancelled */
  'subscription.cancelled': {
    plan: string
    endsAt: string
    reason: string
    status: string
    cancelledAt: string
    subscriptionId: string
    currentPeriodEnd: string
    currentPeriodStart: string
  }
  /** A subscription began */
  'subscription.created': {
    plan: string
    seats: number
    amount: number
    status: string
    currency: string
    customerId: string
    subscriptionId: string
    currentPeriodEnd: string
    currentPeriodStart: string
  }
  /** A subscription ran out */
  'subscription.expired': {
    plan: string
    status: string
    expiredAt: string
    subscriptionId: string
    currentPeriodEnd: string
    currentPeriodStart: string
  }
  /** A subscription was renewed */
  'subscription.renewed': {
    plan: string
    amount: number
    status: string
    currency: string
    invoiceId: string
    renewedAt: string
    subscriptionId: string
    currentPeriodEnd: string
    currentPeriodStart: string
  }
  /** A subscription was changed */
  'subscription.updated': {
    plan: string
    seats: number
    status: string
    previous: {
      plan: string
      seats: number
    }
    subscriptionId: string
    currentPeriodEnd: string
    currentPeriodStart: string
  }
  /** An API key was created */
  'api_key.created': {
    name: string
    prefix: string
    scopes: string[]
    apiKeyId: string
    createdAt: string
    createdBy: string
    expiresAt: string | null
  }
  /** An API key was revoked */
  'api_key.revoked': {
    name: string
    prefix: string
    scopes: string[]
    apiKeyId: string
    revokedAt: string
    revokedBy: string
  }
  /** An API key was replaced */
  'api_key.rotated': {
    name: string
    prefix: string
    scopes: string[]
    apiKeyId: string
    rotatedAt: string
    rotatedBy: string
    previousPrefix: string
  }
  /** Two-factor authentication was switched off */
  'security.2fa_disabled': {
    at: string
    email: string
    method: string
    userId: string
    ipAddress: string
    disabledBy: string
  }
  /** Two-factor authentication was switched on */
  'security.2fa_enabled': {
    at: string
    email: string
    method: string
    userId: string
    ipAddress: string
  }
  /** A login failed */
  'security.login_failed': {
    at: string
    email: string
    reason: string
    userId: string
    ipAddress: string
    userAgent: string
    failedAttempts: number
  }
  /** A password was changed */
  'security.password_changed': {
    at: string
    email: string
    userId: string
    ipAddress: string
    sessionsEnded: number
  }
}

/** A webhook as receivers get it. event says which data it has. */
export type Webhook = {
  [E in WebhookEvent]: { id: string; event: E; data: WebhookPayloads[E]; organizationId: string; timestamp: string }
}[WebhookEvent]
