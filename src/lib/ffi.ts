/**
 * System calls that Node does not offer, called through koffi; those of listening sockets and of systemd are in
 * files of their own.
 *
 * koffi is loaded at the first call, not at import, so that commands which need none of this run where it cannot load (an
 * unsupported C library, a package installed without its prebuilt part). Works in worker threads; each thread loads its own binding.
 */
import { createRequire } from 'node:module'
import type * as Koffi from 'koffi'
import { MeshError } from './errors.ts'

/** getsockopt(2): fills `value`, whose capacity goes in and whose length comes out of `length`. */
export type GetSockOpt = (
  fd: number,
  level: number,
  option: number,
  value: Uint8Array,
  length: Uint32Array,
) => number

let getSockOpt: GetSockOpt | undefined

/**
 * The C library's getsockopt. Returns 0 on success, -1 on failure.
 * @throws MeshError HM_FFI_UNAVAILABLE when koffi does not load here.
 */
export function loadGetSockOpt(): GetSockOpt {
  getSockOpt ??= bindGetSockOpt(() => createRequire(import.meta.url)('koffi'))
  return getSockOpt
}

/** Binds getsockopt through the koffi that `loadKoffi` returns; {@link loadGetSockOpt} is the cached form. */
export function bindGetSockOpt(loadKoffi: () => typeof Koffi): GetSockOpt {
  try {
    // null is the running program itself, whose C library is loaded whatever its file name is.
    const program = loadKoffi().load(null)
    return program.func('int getsockopt(int, int, int, void *, void *)')
  } catch (error) {
    throw new MeshError(
      'HM_FFI_UNAVAILABLE',
      `Cannot load koffi, which reads the original destination of captured connections (${process.platform}-${process.arch})`,
      {
        cause: error,
        hint: 'Reinstall with optional dependencies (npm ci), or set capture.mode: off and use upstream ports',
      },
    )
  }
}

/** flock(2). */
export type Flock = (fd: number, operation: number) => number

let flock: Flock | undefined

/**
 * The C library's flock. Returns 0 on success, -1 on failure.
 * @throws MeshError HM_FFI_UNAVAILABLE when koffi does not load here.
 */
export function loadFlock(): Flock {
  if (flock !== undefined) return flock
  try {
    const koffi: typeof Koffi = createRequire(import.meta.url)('koffi')
    flock = koffi.load(null).func('int flock(int, int)')
    return flock
  } catch (error) {
    throw new MeshError(
      'HM_FFI_UNAVAILABLE',
      `Cannot load koffi, which locks files (${process.platform}-${process.arch})`,
      { cause: error, hint: 'Reinstall with optional dependencies (npm ci)' },
    )
  }
}
