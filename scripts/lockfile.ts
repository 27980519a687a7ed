/**
 * The part of npm's lockfile that our scripts read, and what npm ci would miss in it.
 */

/** One entry of `packages`; the one named '' is the project itself. */
export interface LockedPackage {
  readonly version?: string
  readonly resolved?: string
  readonly os?: readonly string[]
  readonly cpu?: readonly string[]
  readonly libc?: readonly string[]
  readonly dev?: boolean
  readonly optional?: boolean
  readonly license?: string
  readonly dependencies?: Readonly<Record<string, string>>
  readonly devDependencies?: Readonly<Record<string, string>>
  readonly optionalDependencies?: Readonly<Record<string, string>>
}

/** package-lock.json, version 3. */
export interface Lockfile {
  readonly packages: Readonly<Record<string, LockedPackage>>
}

/** A package that another one names and that has no entry of its own. */
export interface MissingPackage {
  readonly name: string
  readonly version: string
  readonly parent: LockedPackage
}

/** Optional dependencies without an entry: npm install forgives them, npm ci does not. */
export function missingFromLockfile(lockfile: Lockfile): readonly MissingPackage[] {
  const { packages } = lockfile
  return Object.entries(packages).flatMap(([place, parent]) =>
    Object.entries(parent.optionalDependencies ?? {})
      .filter(
        ([name]) =>
          packages[`node_modules/${name}`] === undefined &&
          packages[`${place}/node_modules/${name}`] === undefined,
      )
      .map(([name, version]) => ({ name, version, parent })),
  )
}
