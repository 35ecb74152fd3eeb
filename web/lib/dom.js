// SPDX-License-Identifier: Apache-2.0
// Elements without a library. Text is always set as text, never as HTML.

const SVG = 'http://www.w3.org/2000/svg'

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value)
    else node.setAttribute(name, value === true ? '' : String(value))
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined))
  return node
}

/** An HTML element; attributes named "on…" are listeners. */
export function el(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children)
}

/** An SVG element. */
export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children)
}

/**
 * A function that calls `render` with the next frame, however often it is called before; not while
 * a button of `element` is held down, because its click would be lost with it.
 */
export function scheduled(element, render) {
  let asked = false
  let waiting = false
  let pressed = false
  const run = () => {
    waiting = false
    if (pressed || !asked) return
    asked = false
    render()
  }
  const schedule = () => {
    asked = true
    if (!waiting && !pressed) requestAnimationFrame(run)
    waiting = waiting || !pressed
  }
  const release = () => {
    if (!pressed) return
    pressed = false
    setTimeout(() => asked && schedule()) // after the click
  }
  element.addEventListener('pointerdown', () => (pressed = true))
  window.addEventListener('pointerup', release)
  window.addEventListener('pointercancel', release)
  return schedule
}

/** Replaces the children of `node`, keeping the focus on the element with the same data-key. */
export function replaceChildren(node, ...children) {
  const focused = node.contains(document.activeElement) ? document.activeElement : null
  const key = focused?.dataset?.key
  node.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined))
  if (key) node.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true })
}
