/**
 * The part of an intention that decides by HTTP request, as in Consul's service-intentions entries.
 *
 * Plain data. Permissions are tried in order and the first match decides; without a match, the default policy
 * decides. A request matches when its path, its method and every header match.
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

/** Condition on the path of a request, without its query. A regex must match the whole path. */
export interface PathMatch {
  readonly kind: 'exact' | 'prefix' | 'regex'
  readonly value: string
}

/** Condition on one header of a request. */
export interface HeaderMatch {
  /** Lower case. */
  readonly name: string
  readonly kind: 'present' | 'exact' | 'prefix' | 'suffix' | 'contains' | 'regex'
  /** Empty for `present`. */
  readonly value: string
  /** Inverts the result of the match. */
  readonly invert: boolean
  readonly ignoreCase: boolean
}
