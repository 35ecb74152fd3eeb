// SPDX-License-Identifier: Apache-2.0
// Registers the memory view with ComfyUI's front end: sidebar tab, badges, settings.

import { app } from '../../scripts/app.js'
import { api } from '../../scripts/api.js'
import { Badges, mountBadges } from './lib/badges.js'
import { debugLog, useDebugSetting } from './lib/debug.js'
import { Panel } from './lib/panel.js'
import { serverSettings } from './lib/settings.js'
import { Store } from './lib/store.js'

const TAB = 'distorch'

// Made when this file is read, not in setup(): the front end opens its websocket in between, and
// complains of messages that nobody listens to yet.
const store = new Store(api)

function setting(id, fallback) {
  return app.extensionManager?.setting?.get?.(id) ?? fallback
}

function addStyle() {
  const link = document.createElement('link')
  link.rel = 'stylesheet'
  link.href = new URL('./style.css', import.meta.url).href
  document.head.append(link)
}

function addTab(store) {
  let panel = null
  app.extensionManager.registerSidebarTab({
    id: TAB,
    icon: 'pi pi-microchip',
    title: 'DisTorch',
    tooltip: 'DisTorch: who holds the memory',
    type: 'custom',
    render(container) {
      panel?.unmount()
      panel = new Panel(store)
      panel.mount(container)
    },
    destroy() {
      panel?.unmount()
      panel = null
    }
  })
}

function addBadges(store) {
  const badges = new Badges(store)
  let unwatch = null
  const show = (visible) => {
    badges.element.hidden = !visible
    if (visible && !unwatch) unwatch = store.watch()
    if (!visible && unwatch) unwatch = void unwatch()
  }
  debugLog('[setup] badges are in the', mountBadges(app, badges.element))
  show(setting('DisTorch.badges', true))
  store.addEventListener('open', () => app.extensionManager.sidebarTab?.toggleSidebarTab?.(TAB))
  return show
}

let showBadges = () => {}

app.registerExtension({
  name: 'DisTorch.MemoryView',
  settings: [
    {
      id: 'DisTorch.debug_mode',
      name: 'Write more: to the browser\'s console, and to the log the memory at each load',
      category: ['DisTorch', 'Memory view', 'Debug mode'],
      type: 'boolean',
      defaultValue: false
    },
    {
      id: 'DisTorch.badges',
      name: 'Show a badge for each GPU in the top bar',
      category: ['DisTorch', 'Memory view', 'Badges'],
      type: 'boolean',
      defaultValue: true,
      onChange: (value) => showBadges(value)
    },
    ...serverSettings
  ],
  async setup() {
    useDebugSetting(() => setting('DisTorch.debug_mode', false))
    addStyle()
    addTab(store)
    showBadges = addBadges(store)
  }
})
