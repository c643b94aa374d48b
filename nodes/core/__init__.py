"""The plain core of the pack: no ComfyUI in here, runs under pytest alone.

Imports point down only; siblings never import each other:

    jobs                                  each request sent once, on threads of its own
      collect   stop                      RunComfy's result to a file; calling a job off
        job                               one job as others see it
          client  download  uploaders/  media/  ledger
            identity  ledger_schema       what makes two requests the same; the tables
              kling   transport           the model's fields and limits; HTTP
                answers  settings  submit_body
                  errors  states          import nothing of ours
"""
