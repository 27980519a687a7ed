/** The files of `state.directory`: a daemon writes them, and an uninstall removes them. */

/** All names, without `.json`. */
export const stateNames = [
  'capture',
  'capture-ports',
  'catalog',
  'catalog-file',
  'certificates',
  'node',
  'report-key',
  'reports',
  'virtual-addresses',
] as const

/** One of these names. */
export type StateName = (typeof stateNames)[number]
