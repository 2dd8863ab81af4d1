"""Progress of a call: one line where a person is looking, lines in the log where not, or a function's calls.

A call tells of one of three stages at a time:

* `fetch`: downloads from the hub; and where weights must be read to tell which they are, that reading. What has arrived
  is converted meanwhile, and told of when all has.
* `convert`: arrays are written into the cache.
* `restore`: arrays are read from the cache onto the devices.

Stages that have nothing to do are left out. Who loads only counts bytes; what is shown is drawn by another thread.
"""

from lazyload.progress.call import Advance, CallProgress, Noted, show_progress
from lazyload.progress.value import Progress, ProgressOption, Stage

__all__ = [
    "Advance",
    "CallProgress",
    "Noted",
    "Progress",
    "ProgressOption",
    "Stage",
    "show_progress",
]
