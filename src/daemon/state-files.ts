/** The files of `state.directory`: what a daemon writes there, and what an uninstall takes away. */

/** All of them, without `.json`. */
export const stateNames = [
  'capture',
  'capture-ports',
  'catalog',
  'catalog-file',
  'certificates',
  'node',
  'virtual-addresses',
] as const

/** One of them. */
export type StateName = (typeof stateNames)[number]
