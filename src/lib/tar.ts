/**
 * Writes a tar archive (ustar) of small regular files in memory. Pure.
 */

const BLOCK = 512

/** One file of an archive. Its name has at most 100 bytes of ASCII, `/` between folders. */
export interface TarFile {
  readonly name: string
  readonly content: Buffer
}

/** The bytes of the archive. `wallMs` is the time of all files. */
export function tarOf(files: readonly TarFile[], wallMs: number): Buffer {
  const parts = files.flatMap(({ name, content }) => [
    headerOf(name, content.length, wallMs),
    content,
    Buffer.alloc((BLOCK - (content.length % BLOCK)) % BLOCK),
  ])
  // Two empty blocks end an archive.
  return Buffer.concat([...parts, Buffer.alloc(2 * BLOCK)])
}

function headerOf(name: string, length: number, wallMs: number): Buffer {
  const header = Buffer.alloc(BLOCK)
  const octal = (value: number, digits: number): string => value.toString(8).padStart(digits, '0')
  header.write(name.slice(0, 100), 0, 'latin1')
  header.write(`${octal(0o600, 7)}\0`, 100, 'latin1')
  header.write(`${octal(0, 7)}\0${octal(0, 7)}\0`, 108, 'latin1')
  header.write(`${octal(length, 11)}\0`, 124, 'latin1')
  header.write(`${octal(Math.floor(wallMs / 1_000), 11)}\0`, 136, 'latin1')
  // The checksum is that of a header with blanks in its place.
  header.write('        ', 148, 'latin1')
  header.write('0', 156, 'latin1')
  header.write('ustar\x0000', 257, 'latin1')
  const sum = header.reduce((total, byte) => total + byte, 0)
  header.write(`${octal(sum, 6)}\0 `, 148, 'latin1')
  return header
}
