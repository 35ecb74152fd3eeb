// SPDX-License-Identifier: Apache-2.0
// ComfyUI's own field of an allocation string: its value in letters of one width, and checked with every letter typed.
// In Nodes 2.0 the field is an input of the page, which style.css dresses.


const FONT = '11px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace'
const MARGIN = 15 // of the front end's text widgets, and twice that inside

/** `typed(text)` is called while a text is typed into the front end's box, before it is taken over. */
export function dress(widget, typed) {
  drawWithOneWidth(widget)
  listenToBox(widget, typed)
}

function drawWithOneWidth(widget) {
  if (!widget.drawTruncatingText) return // a front end that draws its widgets elsewhere
  widget.drawTruncatingText = function ({ ctx, width }) {
    const { font, textAlign } = ctx
    const [left, right] = [MARGIN * 2, width - MARGIN * 2]
    const base = this.y + this.height * 0.7
    const name = this.displayName
    ctx.textAlign = 'left'
    ctx.fillStyle = this.secondary_text_color
    const words = this.value ? fitting(ctx, name, (right - left) * 0.4) : name
    ctx.fillText(words, left, base)
    const room = right - left - ctx.measureText(words).width - 8
    ctx.font = FONT
    ctx.textAlign = 'right'
    ctx.fillStyle = this.text_color
    ctx.fillText(fitting(ctx, String(this.value ?? ''), room), right, base)
    Object.assign(ctx, { font, textAlign })
  }
}

/** As much of a text as there is room for. */
function fitting(ctx, text, room) {
  if (ctx.measureText(text).width <= room) return text
  let count = text.length
  while (count > 0 && ctx.measureText(`${text.slice(0, count)}…`).width > room) count -= 1
  return `${text.slice(0, count)}…`
}

function listenToBox(widget, typed) {
  const click = widget.onClick
  if (!click) return
  widget.onClick = function (event) {
    click.call(this, event)
    const field = event.canvas?.prompt_box?.querySelector?.('.value')
    if (!field) return
    field.classList.add('dt-mono-field')
    field.spellcheck = false
    field.setAttribute('aria-label', this.displayName)
    field.addEventListener('input', () => typed(field.value, (wrong) => field.setAttribute('aria-invalid', String(wrong))))
  }
}
