/**
 * System calls that Node does not offer, called through koffi; those of listening sockets and of systemd are in
 * files of their own.
 *
 * koffi is loaded at the first call, not at import, so that commands which need none of this run where it cannot load (an
 * unsupported C library, a package installed without its prebuilt part). Works in worker threads; each thread loads its own binding.
 */
import { constants } from 'node:fs'
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

/** malloc_trim(3) of glibc: gives back freed pages, but for so many bytes at the top. Returns 1 when there were any. */
export type MallocTrim = (keptBytes: number) => number

let mallocTrim: MallocTrim | 'unavailable' | undefined

/** The C library's malloc_trim; undefined where that is another than glibc, or koffi does not load: nothing depends on it. */
export function loadMallocTrim(): MallocTrim | undefined {
  if (mallocTrim === undefined)
    try {
      const koffi: typeof Koffi = createRequire(import.meta.url)('koffi')
      mallocTrim = koffi.load(null).func('int malloc_trim(size_t)')
    } catch {
      mallocTrim = 'unavailable'
    }
  return mallocTrim === 'unavailable' ? undefined : mallocTrim
}

/** What Node does not offer for descriptors that exist already. */
export interface DescriptorCalls {
  /** dup2(2): `to` becomes the same open file as `from`. Returns -1 on failure. */
  dup2(from: number, to: number): number
  /** Sets O_NONBLOCK, for every process that shares the open file; no call is made when it is set. */
  setNonBlocking(fd: number): void
}

const F_GETFL = 3
const F_SETFL = 4

let descriptorCalls: DescriptorCalls | undefined

/**
 * The C library's dup2 and fcntl.
 * @throws MeshError HM_FFI_UNAVAILABLE when koffi does not load here.
 */
export function loadDescriptorCalls(): DescriptorCalls {
  if (descriptorCalls !== undefined) return descriptorCalls
  try {
    const koffi: typeof Koffi = createRequire(import.meta.url)('koffi')
    const program = koffi.load(null)
    const fcntl: (fd: number, command: number, type: string, flags: number) => number =
      program.func('int fcntl(int, int, ...)')
    descriptorCalls = {
      dup2: program.func('int dup2(int, int)'),
      setNonBlocking: (fd) => {
        const flags = fcntl(fd, F_GETFL, 'int', 0)
        if (flags >= 0 && (flags & constants.O_NONBLOCK) === 0)
          fcntl(fd, F_SETFL, 'int', flags | constants.O_NONBLOCK)
      },
    }
    return descriptorCalls
  } catch (error) {
    throw new MeshError(
      'HM_FFI_UNAVAILABLE',
      `Cannot load koffi, which keeps the log from waiting (${process.platform}-${process.arch})`,
      { cause: error, hint: 'Reinstall with optional dependencies (npm ci)' },
    )
  }
}
