/**
 * What was counted in a span of time, by column name, whatever the version of the host that counted it.
 */

/** A histogram of any layout: counts by upper bound in seconds, ascending; the last may be Infinity. */
export interface Histogram {
  readonly bounds: readonly number[]
  readonly counts: readonly number[]
  /** Sum of the values, seconds. */
  readonly sum: number
}

/** The sums of one row over a span. Columns in which nothing was counted are absent. */
export interface Figures {
  readonly counts: ReadonlyMap<string, number>
  /** By column, then by the value of its label. */
  readonly splits: ReadonlyMap<string, ReadonlyMap<string, number>>
  readonly histograms: ReadonlyMap<string, Histogram>
}

/** What one host, or all hosts together, counted of one pair of services. */
export interface PairFigures {
  /** Empty in sums of several hosts. */
  readonly host: string
  readonly reporter: 'source' | 'destination'
  readonly source: string
  readonly destination: string
  /** Connections open at the end of the span. */
  readonly active: number
  /** Connections lost in the span because a worker crashed. */
  readonly lost: number
  readonly figures: Figures
}
