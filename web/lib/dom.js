// SPDX-License-Identifier: Apache-2.0
// Elements without a library. Text is always set as text, never as HTML.

const SVG = 'http://www.w3.org/2000/svg'

const handlers = new WeakMap() // element -> the names of its handlers

function setHandler(node, name, value) {
  node[name] = value
  handlers.set(node, (handlers.get(node) ?? new Set()).add(name))
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue
    if (name.startsWith('on')) setHandler(node, name, value)
    else node.setAttribute(name, value === true ? '' : String(value))
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined))
  return node
}

/** An HTML element; attributes named "on…" are handlers, one of each kind. */
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

// What tells children of one parent apart.
const KEYS = ['id', 'data-key', 'data-model', 'data-device', 'data-placement', 'data-prompt', 'data-node', 'data-part', 'data-block']

/**
 * Makes `children` the children of `node`, and changes no more than differs: what stays the same keeps its focus and its hover
 * text, and a screen reader has nothing to read again.
 */
export function update(node, ...children) {
  const focused = node.contains(document.activeElement) ? document.activeElement : null
  const wanted = children.flat().filter((child) => child !== null && child !== undefined)
  updateChildren(node, wanted)
  // An element loses the focus when it moves among its neighbours.
  if (focused && focused !== document.activeElement && node.contains(focused)) focused.focus({ preventScroll: true })
}

function keyOf(node) {
  if (node.nodeType !== Node.ELEMENT_NODE) return undefined
  const name = KEYS.find((key) => node.hasAttribute(key))
  return name && `${name} ${node.getAttribute(name)}`
}

function alike(one, other) {
  return one.nodeName === other.nodeName && keyOf(one) === keyOf(other)
}

const contents = new WeakMap() // element -> {same, build}: see lazy()

/**
 * Leaves the content of `node` to `build`, which is called only where an element with other words in `same` is shown: for
 * pictures of thousands of parts that seldom change. `node` must be given to update(), itself or in another element.
 */
export function lazy(node, same, build) {
  contents.set(node, { same, build })
  node.setAttribute('data-lazy', '')
  return node
}

function complete(node) {
  if (node.nodeType !== Node.ELEMENT_NODE) return
  for (const one of [node, ...node.querySelectorAll('[data-lazy]')]) {
    const content = contents.get(one)
    if (content && !one.hasChildNodes()) one.append(...content.build())
  }
}

function updateChildren(node, wanted) {
  const keyed = new Map([...node.childNodes].map((child) => [keyOf(child), child]))
  let at = node.firstChild
  for (const fresh of wanted) {
    const key = keyOf(fresh)
    const found = key === undefined ? at : keyed.get(key)
    if (!found || !alike(found, fresh)) {
      complete(fresh)
      node.insertBefore(fresh, at)
      continue
    }
    keyed.delete(key)
    if (found === at) at = at.nextSibling
    else node.insertBefore(found, at)
    updateOne(found, fresh)
  }
  while (at) {
    const next = at.nextSibling
    at.remove()
    at = next
  }
}

function updateOne(node, fresh) {
  if (node.nodeType !== Node.ELEMENT_NODE) {
    if (node.data !== fresh.data) node.data = fresh.data
    return
  }
  for (const { name } of [...node.attributes]) if (!fresh.hasAttribute(name)) node.removeAttribute(name)
  for (const { name, value } of fresh.attributes) if (node.getAttribute(name) !== value) node.setAttribute(name, value)
  for (const name of handlers.get(node) ?? []) node[name] = null
  for (const name of handlers.get(fresh) ?? []) setHandler(node, name, fresh[name])
  if (node.nodeName === 'INPUT') {
    node.checked = fresh.checked
    if (node.type === 'range' && document.activeElement !== node) node.value = fresh.value
  }
  const content = contents.get(fresh)
  if (content) {
    const same = contents.get(node)?.same === content.same
    contents.set(node, content)
    if (same) return
    fresh.append(...content.build())
  }
  updateChildren(node, [...fresh.childNodes])
}
