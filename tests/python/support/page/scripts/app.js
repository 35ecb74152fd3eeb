// SPDX-License-Identifier: Apache-2.0
import { api } from './api.js'

const tabs = new Map()
const settings = new Map()
let open = null

function toggleSidebarTab(id) {
  const aside = document.querySelector('aside')
  tabs.get(open)?.destroy?.()
  aside.replaceChildren()
  open = open === id ? null : id
  if (open) tabs.get(open).render(aside)
}

export const app = {
  extensions: [],
  menu: { settingsGroup: { element: document.querySelector('#settings-group') } },
  extensionManager: {
    registerSidebarTab(tab) {
      tabs.set(tab.id, tab)
      const button = document.createElement('button')
      button.textContent = tab.title
      button.id = `tab-${tab.id}`
      button.addEventListener('click', () => toggleSidebarTab(tab.id))
      document.querySelector('nav').append(button)
    },
    sidebarTab: { toggleSidebarTab },
    setting: {
      get: (id) => settings.get(id)?.value,
      set(id, value) {
        const setting = settings.get(id)
        setting.value = value
        setting.onChange?.(value)
      }
    }
  },
  registerExtension(extension) {
    this.extensions.push(extension)
    for (const setting of extension.settings ?? []) settings.set(setting.id, { ...setting, value: setting.defaultValue })
  },
  async start() {
    await api.connect()
    for (const extension of this.extensions) await extension.setup?.()
    window.app = this
    window.api = api
    window.started = true
  }
}
