/** What a node with shots would lose on ComfyUI's page: typed texts, and its height. */

const SHOTS = 'shots'

/**
 * Keep the prompts and lengths of a node's shots while their number changes.
 *
 * ComfyUI's page takes all widgets of a dynamic combo away at each change and makes new, empty
 * ones; newer versions bring back what was typed at the same choice before. Here each shot's
 * latest text comes back, whatever the number. Loading and pasting set the values themselves and
 * call no callback, so they are left alone.
 *
 * @param {object} node a LiteGraph node with a dynamic combo named "shots"
 */
export function keepShots(node) {
  const shots = node.widgets.find((widget) => widget.name === SHOTS)
  if (!shots) return
  /** @type {Map<string, unknown>} */
  const kept = new Map()

  const onInputAdded = node.onInputAdded
  node.onInputAdded = function (input) {
    onInputAdded?.apply(this, arguments)
    if (!input.name.startsWith(`${SHOTS}.`)) return
    const widget = node.widgets.find((one) => one.name === input.name)
    if (widget) rememberWhenRemoved(widget, kept)
  }

  const callback = shots.callback
  shots.callback = function () {
    const result = callback?.apply(this, arguments)
    for (const widget of node.widgets) {
      if (kept.has(widget.name)) widget.value = kept.get(widget.name)
    }
    return result
  }
}

function rememberWhenRemoved(widget, kept) {
  const onRemove = widget.onRemove
  widget.onRemove = function () {
    kept.set(widget.name, widget.value)
    return onRemove?.apply(this, arguments)
  }
}

/**
 * Keep a node's saved height when a workflow is loaded.
 *
 * Setting a dynamic combo shrinks the node to its least height, and loading sets it after the
 * size. ComfyUI's newer pages mind that themselves.
 *
 * @param {object} node a LiteGraph node
 */
export function keepHeight(node) {
  const onConfigure = node.onConfigure
  node.onConfigure = function (saved) {
    onConfigure?.apply(this, arguments)
    if (saved.size) this.setSize([...saved.size])
  }
}
