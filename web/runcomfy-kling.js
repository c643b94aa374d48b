/** The pack's one extension of ComfyUI's page. */

import { app } from '../../scripts/app.js'

import { keepHeight, keepShots } from './shots.js'

const WITH_SHOTS = ['RunComfyKlingImageToVideo', 'RunComfyKlingSubmit']

app.registerExtension({
  name: 'runcomfy-kling',
  nodeCreated(node) {
    if (!WITH_SHOTS.includes(node.comfyClass)) return
    keepShots(node)
    keepHeight(node)
  }
})
