"""The plain core of the pack: no ComfyUI in here, runs under pytest alone.

Imports point down only; siblings never import each other:

    jobs                                      one paid job from images to the file on disk
      client   uploaders/   media/            RunComfy's calls; bytes -> URL; pixels <-> files
        kling   transport                     the model's fields and limits; HTTP
          answers   settings                  what replies say; token and settings
            errors                            imports nothing of ours
"""
