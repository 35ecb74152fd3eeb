// SPDX-License-Identifier: Apache-2.0
// What the setting DisTorch.debug_mode writes to the browser's console.

let enabled = () => false

/** Says where the setting is read. */
export function useDebugSetting(read) {
  enabled = read
}

/** Writes a line when the setting is on. */
export function debugLog(...parts) {
  if (enabled()) console.log('[DisTorch]', ...parts)
}
