"""What every training script shares: a run that can be killed at any moment and ends as if it had not been.

- ``run_files``: the folder of one run, which holds its settings, its whole state (``last.pth``), and the log
  and curves that follow from the records in it.
- ``order``: which images each process sees in which part of which step, and all randomness, are functions of
  the seed, the epoch and the step only. Worker processes read ahead, over the epochs' borders.
- ``augmentation``, ``optimisers``: on the way of an image, and of the weights.
- ``loop.train``: the loop over all this, with gradient accumulation, mixed precision, and an end that names
  epoch, step and images when a loss is not finite.

A *batch* is what one update of the weights sees, in all processes together. It is cut into ``accumulate``
*parts* that follow each other, and each part into equal shares, one a process. A *step* is one update.

On CPUs, a run that was stopped and resumed with as many processes and threads has the same weights bit for
bit as one that was not. On CUDA, PyTorch's own kernels do not promise it.
"""
