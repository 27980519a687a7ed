/**
 * The current certificates of this host, as each certificate source holds them: validated as a whole, then replaced; on
 * any failure the old ones stay and the failure is reported.
 *
 * Leaf and roots arrive independently and in any order. So the last offer for each service is kept and validated again
 * when the roots change (a leaf may be issued by a root that is not known yet) and, while it is rejected, every few
 * seconds (a clock may be corrected).
 */
import type { Clock } from '../../lib/clock.ts'
import type { Log } from '../../lib/log.ts'
import { isStructurallyEqual } from '../../lib/structural-equal.ts'
import type { Leaf, TrustBundle } from '../../model/certificate.ts'
import { Problem } from '../../model/problem.ts'
import { type LeafCandidate, readLeaf } from './x509.ts'

/** What a board is built from. */
export interface CertificateBoardOptions {
  readonly log: Log
  readonly clock: Clock
  /** Where this host is: a leaf for another datacenter is rejected. Default: any datacenter. */
  readonly datacenter?: string | undefined
  /** A leaf with less than this share of its life left is a problem: its renewal has failed. */
  readonly renewalOverdueShare: number
}

/** How often rejected leaves are validated again, milliseconds. */
const RECHECK_MS = 5_000

interface Subscription {
  readonly notify: () => void
}

interface ServiceEntry {
  offer: LeafCandidate | undefined
  isRefused: boolean
  leaf: Leaf | undefined
  readonly subscriptions: Set<Subscription>
  /** Supplies its offers while it is watched. */
  origin: Disposable | undefined
}

/** Never the name of a service: service names have no spaces. */
const ROOTS = 'the roots'

/** Holds the certificates of a source: the source offers them, the daemon watches them. */
export class CertificateBoard implements Disposable {
  readonly #options: CertificateBoardOptions
  readonly #entryByService = new Map<string, ServiceEntry>()
  readonly #rootSubscriptions = new Set<Subscription>()
  readonly #problemBySubject = new Map<string, Problem>()
  readonly #timer: NodeJS.Timeout
  #bundle: TrustBundle | undefined

  constructor(options: CertificateBoardOptions) {
    this.#options = options
    this.#timer = setInterval(() => this.#recheck(), RECHECK_MS)
    this.#timer.unref()
  }

  /**
   * Reads roots by `read` and accepts them. When it throws, records the failure, keeps the old ones and returns false.
   */
  offerRoots(read: () => TrustBundle): boolean {
    let bundle: TrustBundle
    try {
      bundle = read()
    } catch (thrown) {
      this.#setProblem(ROOTS, thrown)
      return false
    }
    this.#clearProblem(ROOTS)
    if (isStructurallyEqual(bundle, this.#bundle)) return true
    if (this.#bundle !== undefined && this.#bundle.trustDomain !== bundle.trustDomain)
      this.#options.log.warn('The trust domain has changed', {
        from: this.#bundle.trustDomain,
        to: bundle.trustDomain,
      })
    this.#bundle = bundle
    this.#options.log.info('Roots taken', {
      trustDomain: bundle.trustDomain,
      roots: bundle.rootsPem.length,
    })
    for (const subscription of this.#rootSubscriptions) subscription.notify()
    for (const service of this.#entryByService.keys()) this.#judge(service)
    return true
  }

  /**
   * Reads a leaf by `read`, accepts it as soon as it is valid and keeps the old one until then. When `read` throws,
   * records the failure and returns false.
   */
  offerLeaf(service: string, read: () => LeafCandidate): boolean {
    const entry = this.#entryOf(service)
    try {
      entry.offer = read()
    } catch (thrown) {
      entry.offer = undefined
      entry.isRefused = false
      this.#setProblem(service, thrown)
      return false
    }
    this.#judge(service)
    return true
  }

  /**
   * Calls back with the current leaf, in a later turn, and with each new one. The first watch of a service calls `open`
   * to have its leaf offered; when the last is disposed, the result of `open` is disposed and the service forgotten.
   */
  watchLeaf(service: string, onLeaf: (leaf: Leaf) => void, open?: () => Disposable): Disposable {
    const entry = this.#entryOf(service)
    if (entry.subscriptions.size === 0) entry.origin = open?.()
    const watch = subscribe(entry.subscriptions, () => entry.leaf, onLeaf)
    let isOpen = true
    return {
      [Symbol.dispose]: () => {
        if (!isOpen) return
        isOpen = false
        watch[Symbol.dispose]()
        if (entry.subscriptions.size > 0) return
        entry.origin?.[Symbol.dispose]()
        if (this.#entryByService.get(service) === entry) this.forget(service)
      },
    }
  }

  /** Calls back with the current roots, in a later turn, and with each new set. */
  watchRoots(onRoots: (bundle: TrustBundle) => void): Disposable {
    return subscribe(this.#rootSubscriptions, () => this.#bundle, onRoots)
  }

  /** Forgets the offer for a service, and its problem. */
  forget(service: string): void {
    this.#entryByService.delete(service)
    this.#problemBySubject.delete(service)
  }

  /** Everything that is wrong now. */
  problems(): readonly Problem[] {
    const nowMs = this.#options.clock.wallMs()
    const ending = [...this.#entryByService].flatMap(([service, { leaf }]) => {
      if (leaf === undefined) return []
      return this.#endingProblem(service, leaf, nowMs) ?? []
    })
    return [...this.#problemBySubject.values(), ...ending]
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer)
    for (const { subscriptions, origin } of this.#entryByService.values()) {
      subscriptions.clear()
      origin?.[Symbol.dispose]()
    }
    this.#rootSubscriptions.clear()
  }

  #endingProblem(service: string, leaf: Leaf, nowMs: number): Problem | undefined {
    // The problem of the newest offer covers this one.
    if (this.#problemBySubject.get(service)?.code === 'HM_CERT_EXPIRED') return undefined
    const leftMs = leaf.notAfterMs - nowMs
    const end = new Date(leaf.notAfterMs).toISOString()
    const details = { subject: service }
    if (leftMs <= 0)
      return new Problem(
        'HM_CERT_ENDED',
        `The certificate of ${service} expired at ${end}: peers refuse it`,
        details,
      )
    // It was accepted while the clock was ahead.
    if (nowMs < leaf.notBeforeMs)
      return new Problem(
        'HM_CERT_REFUSED',
        `The certificate of ${service} is valid from ${new Date(leaf.notBeforeMs).toISOString()}, and the clock of this host says ${new Date(nowMs).toISOString()}: peers refuse it`,
        details,
      )
    if (leftMs > (leaf.notAfterMs - leaf.notBeforeMs) * this.#options.renewalOverdueShare)
      return undefined
    return new Problem(
      'HM_CERT_NOT_RENEWED',
      `The certificate of ${service} ends at ${end} and has not been renewed`,
      details,
    )
  }

  #recheck(): void {
    for (const [service, entry] of this.#entryByService) if (entry.isRefused) this.#judge(service)
  }

  #judge(service: string): void {
    const entry = this.#entryOf(service)
    const { offer } = entry
    if (offer === undefined) return
    if (this.#bundle === undefined) {
      entry.isRefused = true
      return
    }
    let leaf: Leaf
    try {
      leaf = readLeaf(
        { datacenter: this.#options.datacenter, ...offer },
        this.#bundle,
        this.#options.clock.wallMs(),
      )
    } catch (thrown) {
      entry.isRefused = true
      this.#setProblem(service, thrown)
      return
    }
    entry.isRefused = false
    this.#clearProblem(service)
    if (isStructurallyEqual(leaf, entry.leaf)) return
    entry.leaf = leaf
    this.#options.log.info('Certificate taken', {
      service,
      spiffeId: leaf.spiffeId,
      serialNumber: leaf.serialNumber,
      notAfter: new Date(leaf.notAfterMs).toISOString(),
    })
    for (const subscription of entry.subscriptions) subscription.notify()
  }

  #entryOf(service: string): ServiceEntry {
    let entry = this.#entryByService.get(service)
    if (entry === undefined) {
      entry = {
        offer: undefined,
        isRefused: false,
        leaf: undefined,
        subscriptions: new Set(),
        origin: undefined,
      }
      this.#entryByService.set(service, entry)
    }
    return entry
  }

  #setProblem(subject: string, thrown: unknown): void {
    const problem = Problem.of(thrown, 'HM_CERT_REFUSED', { subject })
    // Some messages contain the time, so only another code is logged again.
    if (this.#problemBySubject.get(subject)?.code !== problem.code)
      this.#options.log.warn('Certificate refused; the last good one stays', {
        subject,
        problem: problem.message,
      })
    this.#problemBySubject.set(subject, problem)
  }

  #clearProblem(subject: string): void {
    if (this.#problemBySubject.delete(subject))
      this.#options.log.info('Certificate problem is over', { subject })
  }
}

function subscribe<Value>(
  subscriptions: Set<Subscription>,
  current: () => Value | undefined,
  onValue: (value: Value) => void,
): Disposable {
  let notified: Value | undefined
  const subscription: Subscription = {
    notify() {
      const value = current()
      if (value === undefined || value === notified) return
      notified = value
      onValue(value)
    },
  }
  subscriptions.add(subscription)
  // Never inside this call: the caller does not have its watch yet.
  queueMicrotask(() => {
    if (subscriptions.has(subscription)) subscription.notify()
  })
  return {
    [Symbol.dispose]() {
      subscriptions.delete(subscription)
    },
  }
}
