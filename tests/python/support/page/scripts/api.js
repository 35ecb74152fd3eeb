// SPDX-License-Identifier: Apache-2.0
class Api extends EventTarget {
  registered = new Set()
  clientId = 'page'
  received = 0 // messages that all listeners have had

  addEventListener(type, ...rest) {
    this.registered.add(type)
    super.addEventListener(type, ...rest)
  }

  fetchApi(path, options) {
    return fetch(`/api${path}`, options)
  }

  connect() {
    const socket = new WebSocket(`ws://${location.host}/ws`)
    socket.onmessage = (event) => {
      const { type, data } = JSON.parse(event.data)
      // As the real front end does.
      if (!this.registered.has(type)) console.warn('Unhandled message:', event.data)
      this.dispatchEvent(new CustomEvent(type, { detail: data }))
      this.received += 1
    }
    return new Promise((resolve) => (socket.onopen = resolve))
  }
}
export const api = new Api()
