/**
 * Accounts of callers for tests that are about something else, and for those that are about them.
 */
import {
  type Account,
  Accounts,
  createSharedLimits,
  type Lane,
} from '../../src/dataplane/tunnel/accounts.ts'

const MIB = 1_048_576

/** Limits that nothing here reaches, but for those given. */
const plenty = { heldBytes: 1_024 * MIB, descriptors: 1_000_000, sessions: 10_000 }

/** Accounts of a worker at time 0; `exceeded` counts how often shedding was asked for. */
export function makeAccounts(
  limits: Partial<typeof plenty> = {},
  nowMs = 0,
): { readonly accounts: Accounts; readonly exceeded: () => number } {
  let exceeded = 0
  const accounts = new Accounts(createSharedLimits({ ...plenty, ...limits }), nowMs, {
    onShort: () => undefined,
    onExceeded: () => {
      exceeded += 1
    },
  })
  return { accounts, exceeded: () => exceeded }
}

/** An account that nobody else has to do with. */
export function looseAccount(limits: Partial<typeof plenty> = {}): Account {
  return makeAccounts(limits, performance.now()).accounts.of('web', performance.now())
}

/** A caller and its destination that nobody else has to do with. */
export function looseLane(limits: Partial<typeof plenty> = {}): Lane {
  return looseAccount(limits).lane('db', performance.now())
}
