/**
 * Work that may come a frame later, so that the picture does not wait for it.
 */
import { useEffect, useState } from 'preact/hooks'

/** The value, as of the frame before, null at first: what is made of it is made in a task of its own. */
export function useLater<Value>(value: Value): Value | null {
  const [late, setLate] = useState<{ readonly value: Value | null }>({ value: null })
  useEffect(() => {
    const timer = setTimeout(() => setLate({ value }), 0)
    return () => clearTimeout(timer)
  }, [value])
  return late.value
}
