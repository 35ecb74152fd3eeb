// SPDX-License-Identifier: Apache-2.0
// Registers the memory view with ComfyUI's front end: sidebar tab, badges, settings, the jump from a node.

import { app } from '../../scripts/app.js'
import { api } from '../../scripts/api.js'
import { Badges, mountBadges } from './lib/badges.js'
import { debugLog, useDebugSetting } from './lib/debug.js'
import { Graph } from './lib/graph.js'
import { Panel } from './lib/panel.js'
import { pageSettings, serverSettings } from './lib/settings.js'
import { Store } from './lib/store.js'
import { t, useLocale } from './lib/text.js'

const TAB = 'distorch'

// Made when this file is read, not in setup(): the front end opens its websocket in between, and
// complains of messages that nobody listens to yet.
const store = new Store(api)
const graph = new Graph(app)
let panel = null

function setting(id, fallback) {
  return app.extensionManager?.setting?.get?.(id) ?? fallback
}

useLocale(() => setting('Comfy.Locale', document.documentElement.lang || navigator.language))

function addStyle() {
  const link = document.createElement('link')
  link.rel = 'stylesheet'
  link.href = new URL('./style.css', import.meta.url).href
  document.head.append(link)
}

function addTab() {
  app.extensionManager.registerSidebarTab({
    id: TAB,
    icon: 'pi pi-microchip',
    title: 'DisTorch',
    tooltip: t('tab'),
    type: 'custom',
    render(container) {
      panel?.unmount()
      panel = new Panel(store, graph)
      panel.mount(container)
    },
    destroy() {
      panel?.unmount()
      panel = null
    }
  })
}

function addBadges() {
  const badges = new Badges(store)
  let unwatch = null
  const show = (visible) => {
    badges.element.hidden = !visible
    if (visible && !unwatch) unwatch = store.watch('badges')
    if (!visible && unwatch) unwatch = void unwatch()
  }
  mountBadges(app, badges.element)
  show(setting('DisTorch.badges', true))
  store.addEventListener('open', () => app.extensionManager.sidebarTab?.toggleSidebarTab?.(TAB))
  return show
}

/** Opens the tab at the model of a node. */
function reveal(node) {
  if (!panel) app.extensionManager.sidebarTab?.toggleSidebarTab?.(TAB)
  const look = () => {
    if (!panel?.reveal(node.id)) return
    store.removeEventListener('change', look)
  }
  store.addEventListener('change', look)
  requestAnimationFrame(look)
  setTimeout(() => store.removeEventListener('change', look), 5000)
}

let showBadges = () => {}

app.registerExtension({
  name: 'DisTorch.MemoryView',
  settings: [...pageSettings((value) => showBadges(value)), ...serverSettings()],
  getNodeMenuItems(node) {
    const known = store.models.some((model) => model.node === String(node.id))
    return known ? [{ content: t('show_model'), callback: () => reveal(node) }] : []
  },
  async setup() {
    useDebugSetting(() => setting('DisTorch.debug_mode', false))
    addStyle()
    addTab()
    showBadges = addBadges()
    debugLog('[setup] done')
  }
})
