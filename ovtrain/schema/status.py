"""How a training process tells its launcher that it may be started again."""

REQUEUE = 75
"""Exit status: saved after a signal, or ended because a step hung; the same command goes on."""
SAVED = "saved after a signal; the same command resumes"
"""What rank 0 logs before it leaves with ``REQUEUE``. torchrun, once signalled, has a status of its
own, whatever its ranks' were."""
UNHEALTHY = 76
"""Exit status of ``ovtrain.check``: a device, a link or a node is not as good as its peers."""
