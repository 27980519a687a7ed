/**
 * The part of an intention that decides by HTTP request, as Consul's service-intentions entries have it.
 *
 * Plain data. Permissions are tried from the first to the last, and the first that matches decides; when
 * none does, the default policy holds. A request matches when path, methods and every header do.
 */

/** One permission of an intention. */
export interface IntentionPermission {
  readonly action: 'allow' | 'deny'
  /** Undefined: any path. */
  readonly path: PathMatch | undefined
  /** Upper case; empty: any method. */
  readonly methods: readonly string[]
  /** All of them must match. */
  readonly headers: readonly HeaderMatch[]
}

/** What the path of a request must be, without its query. A regex must match the whole path. */
export interface PathMatch {
  readonly kind: 'exact' | 'prefix' | 'regex'
  readonly value: string
}

/** What one header of a request must be. */
export interface HeaderMatch {
  /** Lower case. */
  readonly name: string
  readonly kind: 'present' | 'exact' | 'prefix' | 'suffix' | 'contains' | 'regex'
  /** Empty for `present`. */
  readonly value: string
  /** Matches exactly when the rest of it does not. */
  readonly invert: boolean
  readonly ignoreCase: boolean
}
