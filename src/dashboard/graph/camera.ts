/**
 * Moves the picture in its frame: wheel, drag, two fingers, keys. Tells where the pointer is; knows nothing of what is
 * drawn.
 *
 * The picture is a pile of layers, each as large as all of it, which the browser has drawn once. A movement only moves
 * them, and scaling stretches what is drawn; when the reader has come to rest, they are drawn sharp.
 */
import type { Box } from './geometry.ts'
import type { Point } from './layout.ts'

/** Where the middle of the frame is in the picture, and how large the picture is drawn. */
export interface Pose {
  readonly x: number
  readonly y: number
  readonly scale: number
}

/** What the owner of a camera is told. */
export interface CameraEvents {
  /** The pointer is at a point of the picture, `reach` units of which are a finger's or a pointer's width; null: it left. */
  readonly hover: (point: Point | null, reach: number) => void
  /** The reader has pressed and let go without moving. */
  readonly press: (point: Point, reach: number) => void
  /** A movement by the reader has ended. */
  readonly rest: (pose: Pose) => void
}

const MIN_SCALE = 0.08
const MAX_SCALE = 3
/** Below this scale small text is left out. */
const FAR_SCALE = 0.5
const REST_MS = 250
/** A pointer that moved less has pressed. */
const PRESS_PX = 4
const MARGIN_PX = 28
const NARROW_PX = 600
const WIDE_PX = 2_000
const READABLE_SCALE = 0.62

/** One frame with its picture. */
export class Camera {
  readonly #frame: HTMLElement
  readonly #layers: readonly SVGSVGElement[]
  readonly #events: CameraEvents
  readonly #pointers = new Map<number, Point>()
  readonly #ending = new AbortController()
  #pose: Pose = { x: 0, y: 0, scale: 1 }
  /** What the layers show. */
  #box: Box = { x: 0, y: 0, width: 1, height: 1 }
  /** The scale at which they are drawn. */
  #drawnScale = 0
  #isDrawnAnew = true
  /** Of the frame, when the pose was set. */
  #size: Point
  #moved = 0
  #hover: Point | null = null
  #isHoverNews = false
  #frameRequest = 0
  #restTimer: ReturnType<typeof setTimeout> | undefined

  constructor(frame: HTMLElement, layers: readonly SVGSVGElement[], events: CameraEvents) {
    this.#frame = frame
    this.#layers = layers
    this.#events = events
    this.#size = { x: frame.clientWidth, y: frame.clientHeight }
    const { signal } = this.#ending
    const on = <Name extends keyof HTMLElementEventMap>(
      name: Name,
      listener: (event: HTMLElementEventMap[Name]) => void,
      passive = true,
    ): void => frame.addEventListener(name, listener, { signal, passive })
    on('wheel', (event) => this.#onWheel(event), false)
    on('pointerdown', (event) => this.#onDown(event))
    on('pointermove', (event) => this.#onMove(event))
    on('pointerup', (event) => this.#onUp(event))
    on('pointercancel', (event) => this.#onUp(event))
    on('pointerleave', () => this.#setHover(null))
  }

  end(): void {
    this.#ending.abort()
    cancelAnimationFrame(this.#frameRequest)
    clearTimeout(this.#restTimer)
  }

  get pose(): Pose {
    return this.#pose
  }

  /** Goes to a place without telling. */
  set(pose: Pose): void {
    this.#isDrawnAnew = true
    this.#move(pose)
  }

  /** The layers show another part of the picture. */
  show(box: Box): void {
    this.#box = box
    for (const layer of this.#layers)
      layer.setAttribute('viewBox', `${box.x} ${box.y} ${box.width} ${box.height}`)
    this.#isDrawnAnew = true
    this.#draw()
  }

  #move(pose: Pose): void {
    this.#pose = { ...pose, scale: Math.min(MAX_SCALE, Math.max(MIN_SCALE, pose.scale)) }
    this.#draw()
  }

  /** Shows all of a box; in a narrow frame its beginning, as large as can be read. */
  fit(box: Box): void {
    const { clientWidth, clientHeight } = this.#frame
    const whole = Math.min(
      (clientWidth - 2 * MARGIN_PX) / box.width,
      (clientHeight - 2 * MARGIN_PX) / box.height,
      clientWidth < WIDE_PX ? 1.25 : 2,
    )
    const scale = clientWidth < NARROW_PX ? Math.max(whole, READABLE_SCALE) : whole
    const isCut = scale > whole && box.width * scale > clientWidth
    const x = isCut ? box.x + (clientWidth / 2 - MARGIN_PX / 2) / scale : box.x + box.width / 2
    this.#size = { x: clientWidth, y: clientHeight }
    this.set({ x, y: box.y + box.height / 2, scale })
  }

  /** The frame has another size: what is at its left and top stays there. */
  resized(): void {
    const { clientWidth, clientHeight } = this.#frame
    const { x, y, scale } = this.#pose
    const before = this.#size
    this.#size = { x: clientWidth, y: clientHeight }
    this.set({
      x: x + (clientWidth - before.x) / 2 / scale,
      y: y + (clientHeight - before.y) / 2 / scale,
      scale,
    })
  }

  /** Makes the picture larger or smaller around the middle. */
  zoom(factor: number): void {
    this.set({ ...this.#pose, scale: this.#pose.scale * factor })
    this.#restSoon()
  }

  /** Moves so that a point of the picture is in the frame. */
  reveal(point: Point, halfWidth: number): void {
    const { x, y, scale } = this.#pose
    const [w, h] = [this.#frame.clientWidth / 2 / scale, this.#frame.clientHeight / 2 / scale]
    const isIn = Math.abs(point.x - x) + halfWidth < w && Math.abs(point.y - y) + halfWidth / 3 < h
    if (!isIn) this.set({ ...point, scale: Math.max(scale, 0.6) })
  }

  #draw(): void {
    if (this.#frameRequest !== 0) return
    this.#frameRequest = requestAnimationFrame(() => {
      this.#frameRequest = 0
      this.#place()
      if (!this.#isHoverNews) return
      this.#isHoverNews = false
      const hover = this.#hover
      this.#events.hover(hover === null ? null : this.#inPicture(hover), this.#reach('mouse'))
    })
  }

  #place(): void {
    const { x, y, scale } = this.#pose
    if (this.#isDrawnAnew) {
      this.#isDrawnAnew = false
      this.#drawnScale = scale
      this.#frame.toggleAttribute('data-far', scale < FAR_SCALE)
      for (const layer of this.#layers) {
        layer.setAttribute('width', String(this.#box.width * scale))
        layer.setAttribute('height', String(this.#box.height * scale))
      }
    }
    const left = this.#frame.clientWidth / 2 + (this.#box.x - x) * scale
    const top = this.#frame.clientHeight / 2 + (this.#box.y - y) * scale
    const transform = `translate(${left}px, ${top}px) scale(${scale / this.#drawnScale})`
    for (const layer of this.#layers) layer.style.transform = transform
  }

  #onWheel(event: WheelEvent): void {
    event.preventDefault()
    if (event.ctrlKey || event.deltaMode !== 0 || Math.abs(event.deltaX) < Math.abs(event.deltaY)) {
      const lines = event.deltaMode === 0 ? 1 : 24
      this.#zoomAt(
        this.#at(event),
        Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.0016)),
      )
    } else this.#pan(-event.deltaX, -event.deltaY)
    this.#restSoon()
  }

  #onDown(event: PointerEvent): void {
    if (event.button !== 0) return
    this.#pointers.set(event.pointerId, this.#at(event))
    this.#moved = this.#pointers.size > 1 ? PRESS_PX : 0
  }

  #onMove(event: PointerEvent): void {
    const at = this.#at(event)
    const before = this.#pointers.get(event.pointerId)
    if (before === undefined) {
      this.#setHover(at)
      return
    }
    const other = [...this.#pointers].find(([id]) => id !== event.pointerId)?.[1]
    if (other !== undefined) {
      const factor = distance(at, other) / Math.max(1, distance(before, other))
      this.#zoomAt({ x: (at.x + other.x) / 2, y: (at.y + other.y) / 2 }, factor)
      this.#pan((at.x - before.x) / 2, (at.y - before.y) / 2)
    } else {
      this.#moved += distance(at, before)
      if (this.#moved >= PRESS_PX) {
        // Not before: a captured pointer clicks on the frame in place of what is under it.
        if (!this.#frame.hasPointerCapture(event.pointerId))
          this.#frame.setPointerCapture(event.pointerId)
        this.#frame.toggleAttribute('data-moving', true)
      }
      this.#pan(at.x - before.x, at.y - before.y)
    }
    this.#pointers.set(event.pointerId, at)
  }

  #onUp(event: PointerEvent): void {
    if (!this.#pointers.delete(event.pointerId)) return
    this.#frame.toggleAttribute('data-moving', false)
    if (this.#moved >= PRESS_PX) this.#restSoon()
    else if (event.type === 'pointerup')
      this.#events.press(this.#inPicture(this.#at(event)), this.#reach(event.pointerType))
  }

  #setHover(at: Point | null): void {
    this.#hover = at
    this.#isHoverNews = true
    this.#draw()
  }

  #pan(dx: number, dy: number): void {
    const { x, y, scale } = this.#pose
    this.#move({ x: x - dx / scale, y: y - dy / scale, scale })
  }

  #zoomAt(at: Point, factor: number): void {
    const before = this.#inPicture(at)
    this.#move({ ...this.#pose, scale: this.#pose.scale * factor })
    const after = this.#inPicture(at)
    const { x, y, scale } = this.#pose
    this.#move({ x: x + before.x - after.x, y: y + before.y - after.y, scale })
  }

  #restSoon(): void {
    clearTimeout(this.#restTimer)
    this.#restTimer = setTimeout(() => {
      this.#isDrawnAnew = this.#pose.scale !== this.#drawnScale
      if (this.#isDrawnAnew) this.#draw()
      this.#events.rest(this.#pose)
    }, REST_MS)
  }

  #reach(pointer: string): number {
    return (pointer === 'touch' ? 18 : 7) / this.#pose.scale
  }

  #at(event: MouseEvent): Point {
    const { left, top } = this.#frame.getBoundingClientRect()
    return { x: event.clientX - left, y: event.clientY - top }
  }

  #inPicture(at: Point): Point {
    const { x, y, scale } = this.#pose
    return {
      x: x + (at.x - this.#frame.clientWidth / 2) / scale,
      y: y + (at.y - this.#frame.clientHeight / 2) / scale,
    }
  }
}

function distance(a: Point, b: Point): number {
  return Math.hypot(a.x - b.x, a.y - b.y)
}
